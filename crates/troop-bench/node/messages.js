'use strict';
// Messages between Node's primary and one worker. Arguments: up, down or trip, and how many.
const cluster = require('cluster');

const [test, count] = [process.argv[2], Number(process.argv[3])];
const rounds = [Math.ceil(count / 10), count];
const note = (n) =>
  ({ n, kind: 'metric', name: 'requests.served', value: 1234.5, host: 'worker-1.example.org', ok: true });
const BURST = 1000;

// Sends in bursts and lets each be written before the next, which is faster than all at once.
function sendAll(target, total, from = 0) {
  const end = Math.min(from + BURST, total);
  for (let n = from; n < end - 1; n++) target.send(note(n));
  target.send(note(end - 1), () => end < total && sendAll(target, total, end));
}

function primary() {
  let round = 0;
  let seen = 0;
  let begin;
  const worker = cluster.fork();
  const start = () => {
    begin = process.hrtime.bigint();
    seen = 0;
    if (test === 'down') sendAll(worker, rounds[round]);
    else worker.send(note(0));
  };
  const finished = () => {
    if (round++ === 0) console.log('ready');
    else console.log(`done ${process.hrtime.bigint() - begin} 0`);
  };
  worker.on('message', () => {
    if (test === 'down') finished();
    else if (++seen === rounds[round]) finished();
    else if (test === 'trip') worker.send(note(seen));
  });
  worker.on('online', start);
  process.stdin.on('data', start);
}

function worker() {
  let round = 0;
  let seen = 0;
  process.on('message', (message) => {
    if (test === 'trip') {
      process.send(message);
    } else if (test === 'up') {
      sendAll(process, rounds[round++]);
    } else if (++seen === rounds[round]) {
      round++;
      seen = 0;
      process.send(note(0));
    }
  });
}

if (cluster.isPrimary) primary();
else worker();
