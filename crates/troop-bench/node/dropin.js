'use strict';
// The same primary for Node's `cluster` and for the npm package. Arguments: how many workers, the scheduling policy.
//
// From one `go` to the next it notes how late its timers are and how long a message takes there and back, and then says
// `done`, with mean and 99th percentile of both, in microseconds.
const cluster = require('cluster');

const INTERVAL_MS = 5;

function primary() {
  const workers = Number(process.argv[2]);
  const policy = process.argv[3];
  cluster.schedulingPolicy = { rr: cluster.SCHED_RR, none: cluster.SCHED_NONE }[policy] ?? policy;
  let listening = 0;
  let late = [];
  let trips = [];
  let timer = null;
  let worker;
  for (let i = 0; i < workers; i++) worker = cluster.fork();
  cluster.on('listening', (_, address) => {
    if (++listening === workers) console.log(`ready ${address.port}`);
  });
  worker.on('message', (sent) => trips.push(process.hrtime.bigint() - BigInt(sent)));

  function tick(due) {
    const now = performance.now();
    late.push(BigInt(Math.round(Math.max(0, now - due) * 1e6)));
    worker.send(String(process.hrtime.bigint()));
    timer = setTimeout(tick, INTERVAL_MS, now + INTERVAL_MS);
  }
  function of(values) {
    const sorted = values.map(Number).sort((a, b) => a - b);
    const mean = sorted.reduce((sum, value) => sum + value, 0) / sorted.length;
    return [mean, sorted[Math.floor(sorted.length * 0.99)]].map((ns) => (ns / 1000).toFixed(1));
  }
  process.stdin.on('data', () => {
    if (timer) {
      clearTimeout(timer);
      timer = null;
      console.log('done', ...of(late), ...of(trips));
      late = [];
      trips = [];
    } else {
      timer = setTimeout(tick, INTERVAL_MS, performance.now() + INTERVAL_MS);
    }
  });
}

if (cluster.isPrimary) {
  primary();
} else {
  require('./server.js');
  process.on('message', (message) => process.send(message));
}
