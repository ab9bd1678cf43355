'use strict';

// A worker that dies before it has confirmed a socket; more are queued behind it. The program must come to its end by itself.

const cluster = require('node:cluster');
const net = require('node:net');
const { report } = require('./report');

const SOCKETS = 3;

if (cluster.isPrimary) {
  const worker = cluster.fork();
  const clients = [];
  const server = net.createServer({ pauseOnConnect: true }, (socket) => {
    clients.push(socket);
    if (clients.length < SOCKETS) return;
    server.close();
    for (const each of clients) {
      worker.send('a socket', each, (error) => {
        report('called back', error ? error.code : null);
        // It has stayed here.
        if (error) each.destroy();
      });
    }
  });
  worker.once('online', () => {
    server.listen(0, '127.0.0.1', () => {
      for (let i = 0; i < SOCKETS; i++) {
        net.connect(server.address().port, '127.0.0.1').on('close', () => report('closed')).on('error', () => {}).resume();
      }
    });
  });
  worker.on('disconnect', () => report('disconnect')).on('exit', (code) => report('exit', code)).on('error', () => {});
} else {
  // The first message is a socket; it is confirmed before the program sees it.
  process.once('message', () => process.exit(7));
}
