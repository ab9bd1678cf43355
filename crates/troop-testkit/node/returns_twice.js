'use strict';

// A hostile worker: when it is to leave, it gives the same connection back again and again.

const net = require('net');

let key;
let connection;

process.on('internalMessage', (message) => {
  if (message.key !== undefined) key = message.key;
  if (message.act !== 'leave') return;
  for (let number = 0; number < 50; number++) {
    process.send({ cmd: 'NODE_TROOP', act: 'move', key, kept: false }, connection, undefined, () => {});
  }
});

net.createServer((socket) => {
  connection = socket._handle;
  socket.on('error', () => {});
  socket.write('connected\n');
}).listen(0, '127.0.0.1', () => process.send({ cmd: 'NODE_TROOP', act: 'moves' }));
