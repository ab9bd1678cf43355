'use strict';
// Node's own primary. Arguments: how many workers, the scheduling policy (rr or none), the script.
const cluster = require('cluster');
const path = require('path');

const workers = Number(process.argv[2]);
if (process.argv[3] === 'none') cluster.schedulingPolicy = cluster.SCHED_NONE;
let listening = 0;
cluster.setupPrimary({ exec: path.join(__dirname, process.argv[4] || 'server.js'), args: [] });
cluster.on('listening', (worker, address) => {
  if (++listening === workers) console.log(`ready ${address.port}`);
});
for (let i = 0; i < workers; i++) cluster.fork();
