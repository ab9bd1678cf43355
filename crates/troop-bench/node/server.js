'use strict';
// A worker: a server that writes one byte, which tells who it is, and ends the connection.
const cluster = require('cluster');
const net = require('net');

const id = cluster.worker ? cluster.worker.id : process.env.NODE_APP_INSTANCE || 0;
const mark = Buffer.from([48 + (id % 200)]);
net.createServer((socket) => {
  socket.on('error', () => {});
  socket.end(mark);
}).listen(0, '127.0.0.1');
