'use strict';
// Node's own primary, which replaces its workers one by one at each line that it reads: fork, wait until it listens, disconnect the old one.
// Arguments: how many workers, the script, its arguments.
const cluster = require('cluster');
const { once } = require('events');

const [workers, exec, ...args] = process.argv.slice(2);
cluster.setupPrimary({ exec, args });
const add = () => once(cluster.fork(), 'listening');

async function restart() {
  for (const old of Object.values(cluster.workers)) {
    await add();
    const ended = once(old, 'exit');
    old.disconnect();
    await ended;
  }
  console.log('done');
}

Promise.all(Array.from({ length: Number(workers) }, add)).then(() => {
  console.log('ready');
  process.stdin.on('data', restart);
});
