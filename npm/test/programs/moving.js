'use strict';

// Clients that keep their connections open, while workers are replaced. The argument says how, the environment with which settings.

const cluster = require('node:cluster');
const { once } = require('node:events');
const http = require('node:http');
const { report } = require('./report');

const CLIENTS = 10;
const settings = JSON.parse(process.env.SETTINGS ?? '{}');

/** Asks over and over on one connection, until it is told to stop; returns how often the connection was new, and what failed. */
function client(port) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const seen = { opened: 0, failed: [], workers: new Set() };
  let stopped = false;
  const ask = () => new Promise((resolve) => {
    const request = http.get({ port, host: '127.0.0.1', agent }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (more) => { text += more; }).on('end', () => {
        seen.workers.add(text);
        if (response.headers.connection !== 'keep-alive') seen.failed.push(response.headers.connection);
        resolve();
      });
    });
    request.on('error', (error) => { seen.failed.push(error.code); resolve(); });
    if (!request.reusedSocket) request.on('socket', (socket) => { if (socket.connecting) seen.opened++; });
  });
  const ended = (async () => {
    while (!stopped) {
      await ask();
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 4));
    }
    agent.destroy();
    return seen;
  })();
  return { ask, stop: () => { stopped = true; return ended; } };
}

const ways = {
  async reload() {
    for (let n = 0; n < 3; n++) await cluster.reload();
  },
  async disconnect() {
    for (let n = 0; n < 3; n++) {
      const [old] = Object.values(cluster.workers);
      cluster.fork();
      await once(cluster, 'listening');
      old.disconnect();
      await once(old, 'exit');
    }
  },
};

async function primary([way]) {
  cluster.setupPrimary(settings);
  for (let n = 0; n < 2; n++) cluster.fork();
  let address;
  for (let n = 0; n < 2; n++) [, address] = await once(cluster, 'listening');
  const clients = Array.from({ length: CLIENTS }, () => client(address.port));
  await new Promise((resolve) => setTimeout(resolve, 100));
  await ways[way]();
  await new Promise((resolve) => setTimeout(resolve, 100));
  const seen = await Promise.all(clients.map((each) => each.stop()));
  report({
    opened: seen.reduce((sum, { opened }) => sum + opened, 0),
    failed: seen.flatMap(({ failed }) => failed),
    sawOthers: seen.every(({ workers }) => workers.size > 1),
  });
  cluster.disconnect(() => report('gone'));
}

if (cluster.isPrimary) primary(process.argv.slice(2));
else {
  if (process.env.NODE_OPTIONS || process.execArgv.join().includes('moves') || 'TROOP_NODE_OPTIONS' in process.env) throw new Error('the script shows');
  http.createServer((request, response) => response.end(`${cluster.worker.id}`)).listen(0, '127.0.0.1');
}
