// Answers with the number of its process, and writes a thousand lines when it is told to.
'use strict';
require('http').createServer((req, res) => {
  if (req.url === '/flood') for (let n = 0; n < 1000; n++) console.log(`${n} `.padEnd(200, 'x'));
  res.end(String(process.pid));
}).listen(0, '127.0.0.1');
