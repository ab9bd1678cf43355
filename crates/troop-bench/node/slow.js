'use strict';
// A worker that takes two milliseconds for each connection, one after the other; the first one eight. Does not use the CPU meanwhile, so
// that many of them fit on a small machine.
const cluster = require('cluster');
const net = require('net');

const { id } = cluster.worker;
const mark = String(id % 10);
const nothing = new Int32Array(new SharedArrayBuffer(4));
net.createServer((socket) => {
  socket.on('error', () => {});
  Atomics.wait(nothing, 0, 0, id === 1 ? 8 : 2);
  socket.end(mark);
}).listen(0, '127.0.0.1');
