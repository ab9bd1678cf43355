'use strict';

// A program that asks for `cluster` and reads it, but forks only at the end.

const cluster = require('node:cluster');
const fs = require('node:fs');
const threads = require('node:worker_threads');
const { report } = require('./report');

// It resolves the names of the peers of all open sockets, for as long as that takes.
process.report.getReport = () => { throw new Error('a diagnostic report was made'); };

const hasEngine = () => fs.readFileSync('/proc/self/maps', 'utf8').includes('.node\n');

if (cluster.isPrimary) {
  const { isPrimary, isMaster, isWorker, settings, workers, worker, schedulingPolicy, SCHED_NONE, SCHED_RR } = cluster;
  report({ isPrimary, isMaster, isWorker, settings, workers, worker, schedulingPolicy, SCHED_NONE, SCHED_RR });
  report(Object.keys(cluster).sort(), cluster.listenerCount('fork'), process.listenerCount('exit'), process.listenerCount('internalMessage'));
  cluster.schedulingPolicy = SCHED_NONE;
  report(cluster.schedulingPolicy);
  for (const event of ['setup', 'fork', 'online', 'exit']) cluster.on(event, () => report(event));
  cluster.disconnect(() => {
    report('nobody to disconnect', hasEngine());
    if (!threads.isMainThread) return;
    new threads.Worker(__filename).on('exit', (code) => {
      report('thread', code, hasEngine());
      cluster.fork();
      // Nobody but the drop-in has one.
      process.stderr.write(`engine: ${hasEngine()}`);
    });
  });
} else {
  process.disconnect();
}
