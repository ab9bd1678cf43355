// A web server that says who it is. Arguments: what it is written with, and options of its server, as JSON. '/wait' is answered when the
// primary says 'answer', and every request is told to it that wants to be: '/told'.
'use strict';
const cluster = require('cluster');
const http = require('http');
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
} else http.createServer(options, respond).listen(...where);
