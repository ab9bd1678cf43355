// Tells what it was sent, and answers questions by troop's convention.
const http = require('node:http');

process.on('message', (message) => {
  if (message?.troop !== 'request') return console.log('sent', JSON.stringify(message));
  const { id, body } = message;
  if (body === 'hang') return;
  process.send({ troop: 'reply', id, ...(body === 'refuse' ? { error: 'not now' } : { body: { heard: body, by: process.pid } }) });
});
http.createServer((request, response) => response.end()).listen(0, '127.0.0.1');
