// Answers on two ports, and closes the second one when it is told to. The first answer names both.
'use strict';
const http = require('http');
const second = http.createServer((req, res) => res.end('second')).listen(0, () => {
  const first = http.createServer((req, res) => {
    const answer = () => res.end(`${process.pid} ${second.address()?.port ?? 'closed'}`);
    if (req.url === '/close' && second.listening) second.close(answer);
    else answer();
  }).listen(0);
});
