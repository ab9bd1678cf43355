// A Node primary that is steered from outside: every line of its input is program text for it to run, every event of its cluster is a
// line of its output.
'use strict';
const cluster = require('cluster');
const path = require('path');

const [, , fixture, policy, serialization = 'json'] = process.argv;
const node = process.execPath;
cluster.schedulingPolicy = policy === 'none' ? cluster.SCHED_NONE : cluster.SCHED_RR;

const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

const fork = (program, exec, args) => {
  process.execPath = program;
  cluster.setupPrimary({ exec, args, execArgv: [], serialization });
  return cluster.fork();
};

// A Rust worker with the given face.
const rust = (face, ...args) => fork(fixture, face, args);

// A Node worker that runs the given text.
const script = (text) => fork(node, path.join(__dirname, 'run.js'), [text]);

for (const event of ['fork', 'online', 'listening', 'message', 'disconnect', 'exit']) {
  cluster.on(event, (worker, first, second) => {
    const { id, state, exitedAfterDisconnect: voluntary = null } = worker;
    const known = id in cluster.workers;
    const report = { event, worker: id, pid: worker.process.pid, state, voluntary, known };
    if (event === 'listening') report.at = first;
    if (event === 'message') report.message = first;
    if (event === 'exit') Object.assign(report, { code: first, signal: second });
    say(report);
  });
}

Object.assign(globalThis, { cluster, say, rust, script, require });
require('readline').createInterface({ input: process.stdin }).on('line', (text) => require('vm').runInThisContext(text));
