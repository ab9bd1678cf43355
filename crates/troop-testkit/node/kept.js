// A web server that is written with the framework which the argument names. It answers who it is: to POST after the body, to '/slow/MS'
// after so many milliseconds. '/grow' has it take 100 MiB of memory.
'use strict';
const cluster = require('cluster');
const path = require('path');

const [kind] = process.argv.slice(2);
const where = [0, '127.0.0.1'];
const me = `${cluster.worker.id} ${process.pid}\n`;
const installed = (folder, name) => require(path.join(__dirname, ...folder, 'node_modules', name));
const examples = ['..', '..', '..', 'examples', 'node'];
const grown = [];

/** What comes before the answer, by the request of Node's. */
const before = async (request) => {
  const time = /^\/slow\/(\d+)$/.exec(request.url)?.[1];
  if (time) await new Promise((resolve) => { setTimeout(resolve, Number(time)); });
  if (request.url === '/grow') grown.push(Buffer.alloc(100 << 20, 1));
  if (request.method === 'POST' && !request.readableEnded) await new Promise((resolve) => { request.resume().on('end', resolve); });
};

/** Longer than a machine without a free processor keeps a worker from reading a request: Node closes a connection at the end of this time, also if one has come. */
const KEEP_ALIVE_TIMEOUT = 60_000;
const patient = (server) => { server.keepAliveTimeout = KEEP_ALIVE_TIMEOUT; };

const servers = {
  http() {
    patient(require('http').createServer(async (request, response) => {
      await before(request);
      response.setHeader('Content-Length', me.length);
      response.end(me);
    }).listen(...where));
  },
  https() {
    // A key for tests, which everybody knows.
    const pem = require('fs').readFileSync(path.join(__dirname, 'tls.pem'));
    require('https').createServer({ key: pem, cert: pem }, (request, response) => response.end(me)).listen(...where);
  },
  express() {
    const app = installed(examples, 'express')();
    app.all('*path', async (request, response) => {
      await before(request);
      response.send(me);
    });
    patient(app.listen(...where));
  },
  fastify() {
    const app = installed(examples, 'fastify')({ forceCloseConnections: 'idle', keepAliveTimeout: KEEP_ALIVE_TIMEOUT });
    app.addContentTypeParser('*', async () => null);
    app.all('/*', async (request) => {
      await before(request.raw);
      return me;
    });
    app.listen({ port: where[0], host: where[1] });
  },
  koa() {
    const Koa = installed(['web'], 'koa');
    const app = new Koa();
    app.use(async (context) => {
      await before(context.req);
      context.body = me;
    });
    patient(app.listen(...where));
  },
};
servers[kind]();
