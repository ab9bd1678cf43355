'use strict';

// The life of one worker after the other, each ended in another way.

const assert = require('node:assert');
const cluster = require('node:cluster');
const net = require('node:net');
const { report } = require('./report');

const ENDS = ['primary-disconnect', 'worker-disconnect', 'worker-kill', 'primary-kill', 'exit-3', 'process-disconnect', 'channel', 'throw'];

if (cluster.isPrimary) {
  const state = (worker) => ({
    state: worker.state,
    flag: worker.exitedAfterDisconnect,
    connected: worker.isConnected(),
    dead: worker.isDead(),
    listed: Object.keys(cluster.workers).includes(String(worker.id)),
  });
  cluster.on('setup', (settings) => report('setup', Object.keys(settings)));
  for (const event of ['fork', 'online', 'listening', 'disconnect', 'exit']) {
    cluster.on(event, (worker, ...rest) => {
      const shown = rest.map((value) => (value?.port ? { ...value, port: 'some' } : value));
      report(event, worker.id, state(worker), ...shown);
    });
  }
  const next = () => {
    const how = ENDS.shift();
    if (!how) return;
    report('next', how);
    const worker = cluster.fork({ HOW: how });
    for (const event of ['online', 'listening', 'disconnect', 'exit']) worker.on(event, () => report('worker', event));
    for (const event of ['spawn', 'disconnect', 'exit', 'close']) worker.process.on(event, () => report('process', event));
    assert.strictEqual(cluster.workers[worker.id], worker);
    worker.on('listening', () => {
      if (how === 'primary-disconnect') assert.strictEqual(worker.disconnect(), worker);
      else if (how === 'primary-kill') worker.kill();
      else if (how === 'channel') worker.process.disconnect();
      else worker.send('go');
    });
    worker.process.on('close', next);
  };
  cluster.setupPrimary({ silent: true });
  next();
} else {
  const ends = {
    'worker-disconnect': () => cluster.worker.disconnect(),
    'worker-kill': () => cluster.worker.kill(),
    'exit-3': () => process.exit(3),
    'process-disconnect': () => process.disconnect(),
    'throw': () => { throw new Error('on purpose'); },
  };
  process.on('message', () => ends[process.env.HOW]());
  net.createServer().listen(0, '127.0.0.1');
}
