// A web server that says who it is. Arguments: what it is written with, and options of its server, as JSON. '/wait' is answered when the
// primary says 'answer', and every request is told to it that wants to be: '/told'.
'use strict';
const cluster = require('cluster');
const http = require('http');
const net = require('net');
const path = require('path');

const [kind, settings = '{}'] = process.argv.slice(2);
const { where = [0, '127.0.0.1'], ...options } = JSON.parse(settings);
const me = `${cluster.worker.id} ${process.pid}\n`;
const installed = (name) => require(path.join(__dirname, '..', '..', '..', 'examples', 'node', 'node_modules', name));

let waiting = [];
process.on('message', (message) => {
  if (message !== 'answer') return;
  for (const answer of waiting) answer();
  waiting = [];
});

const respond = (request, response) => {
  const answer = () => {
    response.setHeader('Content-Length', me.length);
    response.end(me);
  };
  if (request.url === '/told') process.send('asked');
  if (request.url === '/wait') {
    waiting.push(answer);
    process.send('waits');
  } else if (request.method === 'POST') {
    request.resume().on('end', answer);
  } else answer();
};

if (kind === 'express') {
  const app = installed('express')();
  app.all('*path', respond);
  Object.assign(app.listen(...where), options);
} else if (kind === 'fastify') {
  const app = installed('fastify')({ forceCloseConnections: 'idle' });
  app.all('/*', (request, reply) => {
    reply.hijack();
    respond(request.raw, reply.raw);
  });
  Object.assign(app.server, options);
  app.listen({ port: where[0], host: where[1] });
} else {
  const server = http.createServer(options, respond);
  if (kind === 'marked') server.on('request', ({ socket }) => { socket[Symbol.for('troop.stay')] = true; });
  if (kind === 'known') server.on('request', ({ socket }) => { socket.user = 'somebody'; });
  if (kind === 'greeted') server.on('connection', (socket) => { socket.setNoDelay(); });
  if (kind === 'observed') {
    server.on('connection', (socket) => { socket.setNoDelay(); });
    server[Symbol.for('troop.move')] = true;
  }
  if (kind === 'emitted') {
    // Clients come to another server, which gives them to this one.
    net.createServer((socket) => server.emit('connection', socket)).listen(...where);
    server.listen(0, '127.0.0.1');
  } else server.listen(...where);
  server.on('upgrade', (request, socket) => {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
    socket.on('error', () => {}).pipe(socket);
  });
  process.on('message', (message) => {
    if (message === 'close') server.close();
    if (!message.sockets) return;
    const sent = Array.from({ length: 20 }, (_, number) => [number, net.connect(message.sockets, '127.0.0.1')]);
    sent.at(-1)[1].once('connect', () => {
      for (const [number, socket] of sent) process.send({ number }, socket);
    });
  });
}
