'use strict';

// Messages arrive as with Node's own `cluster`, whichever way they take.

const assert = require('node:assert');
const { test } = require('node:test');
const { both } = require('./both');

const same = async (scene, options) => {
  const { stock, dropIn } = await both('channel.js', { args: [scene], ...options });
  assert.deepStrictEqual(dropIn.reports, stock.reports, dropIn.errors);
  assert.deepStrictEqual([dropIn.code, dropIn.signal], [stock.code, stock.signal], dropIn.errors);
  assert.strictEqual(dropIn.errors, '');
  return dropIn;
};

for (const SERIALIZATION of ['json', 'advanced']) {
  for (const policy of ['rr', 'none']) {
    test(`messages with and without sockets stay in order while connections come (${policy}, ${SERIALIZATION})`, async () => {
      const { reports } = await same('order', { env: { SERIALIZATION, NODE_CLUSTER_SCHED_POLICY: policy } });
      assert.deepStrictEqual(reports, [['order', 0, 15]]);
    });
  }
}

test('what does not fit is written when there is room', async () => {
  const { reports } = await same('late');
  assert.deepStrictEqual(reports, [['answers', 101]]);
});

test('what listens to messages has its context, and its errors are caught, as in Node', async () => {
  const { reports } = await same('context');
  assert.strictEqual(reports.filter(([kind]) => kind === 'caught').length, 3);
});

test('what was sent before the primary ends arrives', async () => {
  const { reports, code } = await same('last words');
  assert.deepStrictEqual([reports, code], [[['heard', 100]], 3]);
});

test('a thread can be a primary, and be ended as one', async () => {
  await same('thread');
});

test('workers that come and go leave nothing open', async () => {
  const { reports } = await same('leaks');
  assert.deepStrictEqual(reports.at(-1), ['as before']);
});
