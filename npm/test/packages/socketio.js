'use strict';

// Socket.IO over several workers: `@socket.io/sticky` hands sockets to workers as handles of messages, `@socket.io/cluster-adapter` sends what is
// meant for everybody through the primary's messages.

const cluster = require('node:cluster');
const http = require('node:http');
const { setupMaster, setupWorker } = require('@socket.io/sticky');
const { createAdapter, setupPrimary } = require('@socket.io/cluster-adapter');
const { report } = require('../programs/report');

const WORKERS = 3;
const CLIENTS = 6;

if (cluster.isPrimary) {
  const server = http.createServer();
  setupMaster(server, { loadBalancingMethod: 'round-robin' });
  setupPrimary();
  for (let n = 0; n < WORKERS; n++) cluster.fork();
  let ready = 0;
  cluster.on('message', (worker, message) => {
    if (message !== 'ready' || ++ready < WORKERS) return;
    server.listen(0, '127.0.0.1', () => {
      const { io } = require('socket.io-client');
      const clients = [];
      const workers = new Set();
      const heard = [];
      let connected = 0;
      for (let n = 0; n < CLIENTS; n++) {
        const client = io(`http://127.0.0.1:${server.address().port}`, { forceNew: true });
        clients.push(client);
        client.on('welcome', (worker) => {
          workers.add(worker);
          if (++connected === CLIENTS) clients[0].emit('tell', 'everybody');
        });
        client.on('told', (text) => {
          if (heard.push(text) < CLIENTS) return;
          report(workers.size, heard);
          clients.forEach((client) => client.close());
          server.close();
          for (const worker of Object.values(cluster.workers)) worker.kill();
        });
      }
    });
  });
} else {
  const { Server } = require('socket.io');
  const io = new Server(http.createServer());
  io.adapter(createAdapter());
  setupWorker(io);
  io.on('connection', (socket) => {
    socket.emit('welcome', cluster.worker.id);
    socket.on('tell', (text) => io.emit('told', text));
  });
  process.send('ready');
}
