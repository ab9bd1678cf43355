'use strict';

// Servers of all kinds, shared by two workers, and what cannot be listened on.

const cluster = require('node:cluster');
const dgram = require('node:dgram');
const http = require('node:http');
const net = require('node:net');
const path = require('node:path');
const { plain, report } = require('./report');

const DIRECTORY = process.env.DIRECTORY;
const KINDS = ['tcp', 'tcp6', 'pipe', 'http', 'udp', 'exclusive', 'taken', 'nowhere', 'again'];

if (cluster.isPrimary) {
  cluster.setupPrimary({ serialization: process.env.SERIALIZATION });
  const taken = net.createServer().listen(0, '127.0.0.1', () => {
    const env = { TAKEN: taken.address().port };
    const workers = [cluster.fork(env), cluster.fork(env)];
    const next = () => {
      const kind = KINDS.shift();
      if (!kind) {
        taken.close();
        cluster.disconnect(() => report('gone', cluster.workers));
        return;
      }
      let answers = [];
      for (const worker of workers) {
        worker.removeAllListeners('message');
        worker.on('message', (answer) => {
          if (answers.push(answer) < workers.length) return;
          const ports = new Set(answers.map(({ port }) => port).filter((port) => typeof port === 'number'));
          report(kind, answers[0].error ?? answers[0].family ?? answers[0].path ?? 'ok', ports.size);
          answers = [];
          use(kind, [...ports][0], next);
        });
        worker.send(kind);
      }
    };
    next();
  });

  const use = (kind, port, done) => {
    const at = kind === 'pipe' ? path.join(DIRECTORY, 'pipe') : { tcp: port, http: port, again: port }[kind];
    if (!at) return done();
    const seen = new Set();
    const ask = (left) => {
      if (left === 0) {
        report('served by', [...seen].sort());
        return done();
      }
      const socket = net.connect(at).setEncoding('utf8').once('data', (text) => {
        seen.add(text.trim().slice(-1));
        socket.destroy();
        ask(left - 1);
      });
      if (kind === 'http') socket.write('GET / HTTP/1.0\r\n\r\n');
    };
    ask(8);
  };
} else {
  const answer = (socket) => socket.end(`worker ${cluster.worker.id}`);
  const tell = (server) => () => {
    const at = server.address();
    process.send(typeof at === 'string' ? { path: path.basename(at) } : at);
  };
  const failed = (error) => process.send({ error: { ...plain(error), message: undefined } });
  const listen = (server, ...how) => server.on('error', failed).listen(...how, tell(server));
  let again = null;
  process.on('message', (kind) => {
    if (kind === 'tcp') listen(net.createServer(answer), 0, '127.0.0.1');
    if (kind === 'tcp6') listen(net.createServer(answer), { port: 0, host: '::1', ipv6Only: true });
    if (kind === 'pipe') listen(net.createServer(answer), path.join(DIRECTORY, 'pipe'));
    if (kind === 'http') {
      const one = (request, response) => response.end(`worker ${cluster.worker.id}`);
      listen(http.createServer({ keepAliveTimeout: 1 }, one), 0, '127.0.0.1');
    }
    if (kind === 'udp') {
      const socket = dgram.createSocket('udp4').on('error', failed).bind(0, '127.0.0.1', () => tell(socket)());
    }
    if (kind === 'exclusive') {
      // Node forgets about it, so it has to be closed here.
      const server = net.createServer(answer).listen({ port: 0, host: '127.0.0.1', exclusive: true }, () => { tell(server)(); server.close(); });
    }
    if (kind === 'taken') listen(net.createServer(answer), Number(process.env.TAKEN), '127.0.0.1');
    if (kind === 'nowhere') listen(net.createServer(answer), path.join(DIRECTORY, 'no', 'such', 'directory'));
    if (kind === 'again') {
      again = net.createServer(answer).listen(0, '127.0.0.1', () => again.close(() => listen(again = net.createServer(answer), 0, '127.0.0.1')));
    }
  });
}
