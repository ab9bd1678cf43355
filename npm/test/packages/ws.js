'use strict';

// WebSockets with `ws`: connections that stay, on workers that are told to go when they are over.

const cluster = require('node:cluster');
const { WebSocket, WebSocketServer } = require('ws');
const { report } = require('../programs/report');

if (cluster.isPrimary) {
  let listening = 0;
  cluster.fork();
  cluster.fork();
  cluster.on('listening', (worker, { port }) => {
    if (++listening < 2) return;
    const heard = [];
    for (let n = 0; n < 4; n++) {
      const socket = new WebSocket(`ws://127.0.0.1:${port}`);
      socket.on('open', () => socket.send(`hello ${n}`));
      socket.on('message', (data) => {
        heard.push(String(data));
        socket.close();
        if (heard.length < 4) return;
        report(heard.sort());
        cluster.disconnect(() => report('gone'));
      });
    }
  });
} else {
  const server = new WebSocketServer({ port: 0 });
  server.on('connection', (socket) => socket.on('message', (data) => socket.send(`heard ${data}`)));
}
