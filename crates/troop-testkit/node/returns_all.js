'use strict';

// A hostile worker: when it is to leave, it gives all of its connections back at once, and stays.

const net = require('net');

const connections = [];
const primary = process.ppid;
let key;

process.on('internalMessage', (message) => {
  if (message.key !== undefined) key = message.key;
  if (message.act !== 'leave') return;
  process.disconnect = () => {};
  setInterval(() => process.ppid === primary || process.exit(), 100);
  for (const connection of connections) {
    process.send({ cmd: 'NODE_TROOP', act: 'move', key, kept: false }, connection, undefined, () => {});
  }
  process.send('done');
});

net.createServer((socket) => {
  connections.push(socket._handle);
  socket.on('error', () => {});
  socket.write('connected\n');
}).listen({ port: 0, host: '127.0.0.1', backlog: 2000 }, () => process.send({ cmd: 'NODE_TROOP', act: 'moves' }));
