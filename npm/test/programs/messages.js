'use strict';

// Messages of all kinds and sizes, with and without callbacks, and what `send` says to what it cannot send.

const cluster = require('node:cluster');
const { plain, report } = require('./report');

const MESSAGES = [
  'text', '', 0, -1.5, true, false, null, [], {}, { deep: { er: [1, { two: '\u2028\n"\\ \u{1f600}' }] } }, { cmd: 'NODE' }, { cmd: 'NODE_' },
  { cmd: 7 }, { type: 'NODE_HANDLE' }, 'x'.repeat(800_000), { big: 'y'.repeat(3_000_000) },
];

if (cluster.isPrimary) {
  cluster.setupPrimary({ serialization: process.env.SERIALIZATION });
  const worker = cluster.fork();
  const got = [];
  const short = (value) => {
    const text = JSON.stringify(value);
    return text.length > 100 ? `${text.length} characters` : value;
  };
  cluster.on('message', (from, message, handle) => report('message', from.id, short(message), handle === undefined));
  worker.on('message', (message) => {
    got.push(message);
    if (got.length < MESSAGES.length) return;
    for (const wrong of [undefined, () => {}, Symbol('no'), 10n]) {
      try { report('sent', worker.send(wrong)); } catch (error) { report('thrown', plain(error)); }
    }
    try { worker.send('x', {}); } catch (error) { report('thrown', plain(error)); }
    try { worker.send('x', undefined, 'no options'); } catch (error) { report('thrown', plain(error)); }
    worker.disconnect();
  });
  worker.on('exit', (code) => {
    report('exit', code);
    report('send', worker.send('too late', (error) => report('callback', plain(error))));
    worker.once('error', (error) => report('error', plain(error)));
    report('send', worker.send('too late'));
  });
  for (const message of MESSAGES) worker.send(message, (error) => report('callback', error));
} else {
  process.on('message', (message) => process.send(message));
}
