'use strict';

// Open sockets and servers, both ways.

const cluster = require('node:cluster');
const dgram = require('node:dgram');
const net = require('node:net');
const { report } = require('./report');

if (cluster.isPrimary) {
  cluster.setupPrimary({ serialization: process.env.SERIALIZATION });
  const worker = cluster.fork();
  let left = 4;
  const done = (what, value) => {
    report(what, value);
    if (--left === 0) cluster.disconnect();
  };

  // A connection that the primary has accepted.
  const server = net.createServer({ pauseOnConnect: true }, (socket) => {
    worker.send('socket', socket, (error) => report('socket sent', error));
    server.close();
  }).listen(0, '127.0.0.1', () => {
    net.connect(server.address().port, '127.0.0.1').setEncoding('utf8').once('data', (text) => done('socket', text));
  });

  // A server of the primary's, which the worker serves.
  const given = net.createServer().listen(0, '127.0.0.1', () => {
    worker.send('server', given, () => {
      const { port } = given.address();
      given.close(() => {
        net.connect(port, '127.0.0.1').setEncoding('utf8').once('data', (text) => done('server', text));
      });
    });
  });

  // A UDP socket of the primary's.
  const udp = dgram.createSocket('udp4').bind(0, '127.0.0.1', () => {
    worker.send('udp', udp, () => {
      const { port } = udp.address();
      udp.close();
      const client = dgram.createSocket('udp4');
      client.on('message', (text) => { client.close(); done('udp', String(text)); });
      client.send('ping', port, '127.0.0.1');
    });
  });

  // A connection of the worker's.
  worker.on('message', (message, socket) => {
    report('message', message, socket instanceof net.Socket);
    socket.setEncoding('utf8').once('data', (text) => { socket.end(); done('back', text); });
  });
  worker.on('exit', (code) => report('exit', code));
} else {
  process.on('message', (what, handle) => {
    if (what === 'socket') handle.end('from the worker');
    if (what === 'server') handle.on('connection', (socket) => { socket.end('served'); handle.close(); });
    if (what === 'udp') {
      handle.on('message', (text, { port }) => handle.send(`got ${text}`, port, '127.0.0.1', () => handle.close()));
      const server = net.createServer({ pauseOnConnect: true }, (socket) => {
        process.send(null, socket);
        server.close();
      }).listen({ port: 0, host: '127.0.0.1', exclusive: true }, () => net.connect(server.address().port, '127.0.0.1').end('by way of the worker'));
    }
  });
}
