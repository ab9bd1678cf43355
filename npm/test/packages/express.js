'use strict';

// An Express app on two workers, as in the first example of everybody.

const cluster = require('node:cluster');
const http = require('node:http');
const { report } = require('../programs/report');

if (cluster.isPrimary) {
  let listening = 0;
  cluster.fork();
  cluster.fork();
  cluster.on('listening', (worker, { port }) => {
    if (++listening < 2) return;
    const seen = new Set();
    const ask = (left) => {
      if (left === 0) {
        report([...seen].sort());
        return cluster.disconnect();
      }
      http.get({ port, agent: false, path: '/who' }, (response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (more) => { text += more; }).on('end', () => {
          seen.add(`${response.headers['x-powered-by']} ${text}`);
          ask(left - 1);
        });
      });
    };
    ask(10);
  });
} else {
  const app = require('express')();
  app.get('/who', (request, response) => response.send(`worker ${cluster.worker.id}`));
  app.listen(0);
}
