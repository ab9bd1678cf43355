'use strict';
// A server, on the port that its argument says, or that the benchmark has written down.
const port = Number(process.argv[2] || require('fs').readFileSync(require('./port_file.js'), 'utf8'));
require('http').createServer((request, response) => response.end('served')).listen(port, '127.0.0.1');
