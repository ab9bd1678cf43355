'use strict';

// Connections that a worker has been given and did not take reach another one when it is killed.

const cluster = require('node:cluster');
const net = require('node:net');
const { report } = require('./report');

if (cluster.isPrimary) {
  const workers = [cluster.fork(), cluster.fork()];
  let listening = 0;
  cluster.on('listening', (worker, { port }) => {
    if (++listening < 2) return;
    workers[0].once('message', () => {
      let answered = 0;
      for (let n = 0; n < 20; n++) {
        net.connect(port, '127.0.0.1').setEncoding('utf8').once('data', () => {
          if (++answered < 20) return;
          report('all answered');
          cluster.disconnect();
        });
      }
      setTimeout(() => workers[0].kill('SIGKILL'), 200);
    });
    workers[0].send('hang');
  });
} else {
  process.on('message', () => process.send('now', () => { for (;;); }));
  net.createServer((socket) => socket.end('x')).listen(0, '127.0.0.1');
}
