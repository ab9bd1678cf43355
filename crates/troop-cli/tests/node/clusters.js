'use strict';
// A program that uses `cluster` itself.
const cluster = require('cluster');
const http = require('http');

if (cluster.isPrimary) {
  console.error('the part for the primary runs');
  for (let i = 0; i < 2; i++) cluster.fork();
} else {
  http.createServer((request, response) => response.end(`worker ${cluster.worker.id}`)).listen(0, '127.0.0.1');
}
