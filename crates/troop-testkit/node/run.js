// A Node worker that runs the program text in its first argument. The modules of Node and what follows are at hand for it.
'use strict';
const cluster = require('cluster');
const net = require('net');

const me = `${cluster.worker.id} ${process.pid}`;

// Sends a message to the primary.
const tell = (message, handle) => process.send(message, handle);

// Tells the primary about the errors of a server or socket.
const watched = (emitter) => emitter.on('error', (e) => tell({ error: e.code }));

// Listens wherever it is told to, and writes this worker's name into every connection.
const serve = (...where) => watched(net.createServer((socket) => socket.end(`${me}\n`))).listen(...where);

// The same, but leaves the connections open.
const hold = (...where) => {
  const server = net.createServer((socket) => {
    socket.on('error', () => {});
    socket.write(`${me}\n`);
  });
  return watched(server).listen(...where);
};

// Binds a UDP socket that returns what it receives with this worker's name.
const echo = (type, ...where) => {
  const socket = watched(require('dgram').createSocket(type));
  socket.on('message', (text, from) => socket.send(`${text} ${me}\n`, from.port, from.address));
  return socket.bind(...where);
};

Object.assign(globalThis, { cluster, net, me, tell, watched, serve, hold, echo, require });
for (const name of ['crypto', 'dgram', 'fs', 'http', 'inspector', 'tls']) {
  Object.defineProperty(globalThis, name, { get: () => require(name), configurable: true });
}
require('vm').runInThisContext(process.argv[2]);
