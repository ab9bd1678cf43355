// Clients of an HTTPS server that keep one connection each: half of them ask again and again, half never again. Arguments: the port, how many.
// Says 'ready' when all are connected, and at the end, as JSON, what they have noticed, in milliseconds since the first line that it reads.
'use strict';
const https = require('https');

const [port, count] = process.argv.slice(2).map(Number);
const noticed = { failed: [], announced: 0, closed: [] };
let begin = Date.now();
let answered = 0;
let ended = 0;

const end = () => {
  if (++ended < count) return;
  console.log(JSON.stringify(noticed));
  process.exit();
};

const client = (number) => {
  const agent = new https.Agent({ keepAlive: true, maxSockets: 1, rejectUnauthorized: false });
  const isEager = number % 2 === 0;
  let isFirst = true;
  let isLast = false;
  const ask = () => {
    const request = https.get({ port, host: '127.0.0.1', agent }, (response) => {
      isLast = response.headers.connection === 'close';
      response.resume().on('end', () => {
        if (isFirst && ++answered === count) console.log('ready');
        isFirst = false;
        if (isLast) noticed.announced++;
        else if (isEager) setTimeout(ask, 10);
      });
    });
    request.on('error', ({ message }) => noticed.failed.push(message));
    if (isFirst) {
      request.on('socket', (socket) => socket.once('close', () => {
        if (!isLast) noticed.closed.push(Date.now() - begin);
        isLast = true;
        end();
      }));
    }
  };
  ask();
};

process.stdin.once('data', () => { begin = Date.now(); });
for (let number = 0; number < count; number++) client(number);
