'use strict';
// Node's own primary. Arguments: how many workers.
const cluster = require('cluster');
const path = require('path');

const workers = Number(process.argv[2]);
let listening = 0;
cluster.setupPrimary({ exec: path.join(__dirname, 'server.js'), args: [] });
cluster.on('listening', (worker, address) => {
  if (++listening === workers) console.log(`ready ${address.port}`);
});
for (let i = 0; i < workers; i++) cluster.fork();
