'use strict';
// A server, on the port that its argument says, or that the benchmark has written down.
const fs = require('fs');
const os = require('os');
const path = require('path');

function written() {
  const files = fs.readdirSync(os.tmpdir()).filter((name) => /^troop-bench-\d+\.port$/.test(name));
  return fs.readFileSync(path.join(os.tmpdir(), files[0]), 'utf8');
}

const port = Number(process.argv[2] || written());
require('http').createServer((request, response) => response.end('served')).listen(port, '127.0.0.1');
