'use strict';

// Nothing that a worker writes to its channel throws in the primary, where no program could catch it: the worker is killed, and a warning says why.

const assert = require('node:assert');
const { test } = require('node:test');
const { run } = require('./both');

/** What does no harm, or only to the connection or the message. Everything else costs the worker its life. */
const HARMLESS = new Set([
  // Reported, like other small breaches of the rules.
  'an answer that nobody waits for', 'a refusal that nobody waits for', 'escaped letters', 'an escaped name',
  'an answer in wide letters', 'an answer with its field twice', 'an answer that comes with a socket',
  'a socket of an unknown type', 'a socket as a datagram socket', 'a socket as a server', 'a server as a socket', 'a datagram socket as a stream',
  'a socket beside an ordinary message', 'a socket that nobody is told of', 'a handle within itself that did not arrive',
  // Sent by Node itself when a socket did not arrive.
  'a socket within a socket of no type', 'a socket within a disguised one',
  // As good as any other message.
  'an unknown message', 'an unknown message behind a map', 'a count of nothing', 'names of prototypes', 'values that only V8 has',
  'a view that does not fit', 'a frame without an end',
  // The program's to deal with, and if it does not, nobody's.
  'a socket that fails at once', 'a datagram socket that fails',
]);

/** The engine takes the innermost one out, where it can read all of them. */
const JSON_ONLY = new Set(['sockets within sockets']);

for (const SERIALIZATION of ['json', 'advanced']) {
  test(`a worker that writes what Node never would is killed, and the primary lives (${SERIALIZATION})`, async () => {
    const { code, reports, errors } = await run('hostile.js', { env: { SERIALIZATION }, flags: ['--no-warnings'] });
    const of = (kind) => reports.filter(([first]) => first === kind).map(([, ...rest]) => rest);
    assert.deepStrictEqual([code, of('uncaught'), of('error'), of('served')], [0, [], [], [[]]], errors);
    const ends = of('exit');
    assert.ok(ends.length > 35, 'that was not all of it');
    for (const [name, how] of ends) assert.strictEqual(how === 'SIGKILL', !(HARMLESS.has(name) || (SERIALIZATION === 'json' && JSON_ONLY.has(name))), `${name}: ${how}`);
    const killed = ends.filter(([, how]) => how === 'SIGKILL').length;
    const said = of('warning').filter(([text]) => text.includes(' was killed because it sent ')).length;
    assert.strictEqual(said, killed);
  });
}
