'use strict';
// A server, on the port that the benchmark has written down.
const fs = require('fs');
const os = require('os');
const path = require('path');

const files = fs.readdirSync(os.tmpdir()).filter((name) => /^troop-bench-\d+\.port$/.test(name));
const port = Number(fs.readFileSync(path.join(os.tmpdir(), files[0]), 'utf8'));
require('http').createServer((request, response) => response.end('served')).listen(port, '127.0.0.1');
