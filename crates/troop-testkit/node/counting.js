// Sends numbers to the primary, one after the other, in bursts, until it is told to leave, and listens on a path.
'use strict';
const cluster = require('cluster');
const [path] = process.argv.slice(2);

let number = 0;
setInterval(() => { for (let i = 0; i < 5; i += 1) process.send(number += 1); }, 2);
require('http').createServer((request, response) => response.end(`${cluster.worker.id}\n`)).listen(path || 0);
