'use strict';

// A server of socket.io, whose workers reach each other's clients by @socket.io/cluster-adapter; with a
// port as its argument, its clients.

function serve() {
  const { createServer } = require('node:http');
  const { Server } = require('socket.io');
  const { createAdapter } = require('@socket.io/cluster-adapter');
  const server = createServer();
  const io = new Server(server, { transports: ['websocket'], adapter: createAdapter() });
  io.on('connection', (socket) => {
    socket.emit('welcome', process.pid);
    socket.on('tell', (text) => io.emit('told', text));
    socket.on('count', async (answer) => answer((await io.fetchSockets()).length));
    socket.on('ask', (answer) => io.serverSideEmit('who', (error, all) => answer(error ? `${error}` : all)));
  });
  io.on('who', (answer) => answer(process.pid));
  server.listen(0, '127.0.0.1');
}

async function visit(port) {
  const { io } = require('socket.io-client');
  const { once } = require('node:events');
  const clients = [];
  const pids = [];
  for (let n = 0; n < 6; n++) {
    const client = io(`http://127.0.0.1:${port}`, { forceNew: true, transports: ['websocket'] });
    const welcome = new Promise((done) => client.once('welcome', done));
    clients.push(client);
    pids.push(await welcome);
  }
  const told = Promise.all(clients.map((client) => new Promise((done) => client.once('told', done))));
  clients[0].emit('tell', 'everybody');
  const heard = await told;
  const count = await clients[0].emitWithAck('count');
  const others = await clients[0].emitWithAck('ask');
  console.log(JSON.stringify({ pids, heard, count, others }));
  process.exit(0);
}

if (process.argv[2]) visit(process.argv[2]);
else serve();
