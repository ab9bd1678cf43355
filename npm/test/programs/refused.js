'use strict';

// Asks a worker for idle connections that nobody takes: Node's own primary, so that this program can ask, and a worker that cannot send
// connections. Reports how many requests were answered on these connections afterwards.

const cluster = require('node:cluster');
const http = require('node:http');
const path = require('node:path');

const CONNECTIONS = 8;
const ROUNDS = 3;

if (cluster.isWorker) {
  http.createServer((request, response) => response.end('served')).listen(0, '127.0.0.1');
  return;
}

cluster.setupPrimary({
  execArgv: ['--require', path.join(__dirname, 'refusing.js'), '--require', path.join(__dirname, '..', '..', 'lib', 'moves.js')],
});
const worker = cluster.fork({ TROOP_NODE_OPTIONS: '' });
let key;
worker.process.on('internalMessage', (message) => {
  if (message.act === 'queryServer') key = `${message.address}:${message.port}:${message.addressType}:${message.fd}:${message.index}`;
});

const agent = new http.Agent({ keepAlive: true, maxSockets: CONNECTIONS });
/** Sends a request on each connection at the same time, and returns the local ports of those that were answered. */
const askAll = (port) => Promise.all(Array.from({ length: CONNECTIONS }, () => new Promise((resolve) => {
  const request = http.get({ agent, port, host: '127.0.0.1', timeout: 5000 }, (response) => {
    response.resume().on('end', () => resolve(request.socket.localPort));
  });
  request.on('timeout', () => request.destroy(new Error('no answer')));
  request.on('error', (error) => resolve(error.message));
})));

cluster.on('listening', async (_, { port }) => {
  const before = await askAll(port);
  const refused = new Promise((resolve) => {
    let count = 0;
    worker.on('message', () => { if ((count += 1) === CONNECTIONS) resolve(); });
  });
  worker.send({ cmd: 'NODE_TROOP', act: 'rebalance', key, count: CONNECTIONS });
  await refused;
  const after = [];
  for (let round = 0; round < ROUNDS; round += 1) after.push(await askAll(port));
  console.log(JSON.stringify({ connections: new Set(before).size, same: after.flat().filter((port) => before.includes(port)).length, after: after.flat().length }));
  agent.destroy();
  worker.kill('SIGKILL');
});
