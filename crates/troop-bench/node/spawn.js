'use strict';
// Node's primary forks workers that do nothing. Arguments: how many, and how many MiB of heap the primary touches before.
const cluster = require('cluster');
const path = require('path');

const [workers, heap] = [Number(process.argv[2]), Number(process.argv[3])];
const blocks = [];
for (let i = 0; i < heap; i++) blocks.push(Buffer.alloc(1 << 20, 1));
const cpu = () => {
  const { user, system } = process.cpuUsage();
  return user + system;
};
let online = 0;
let forks = 0;
cluster.setupPrimary({ exec: path.join(__dirname, 'idle.js'), args: [] });
const [begin, before] = [process.hrtime.bigint(), cpu()];
cluster.on('online', () => {
  if (++online === workers) {
    console.log(`done ${forks / workers} ${(cpu() - before) / workers} ${process.hrtime.bigint() - begin} ${blocks.length}`);
  }
});
for (let i = 0; i < workers; i++) cluster.fork();
forks = cpu() - before;
