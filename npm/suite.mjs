// Runs the tests of Node's own suite that use `cluster`, with Node's `cluster` and with the drop-in, and prints the differences.
//
//     node npm/suite.mjs DIRECTORY [--node PATH]... [--only TEXT] [--repeat N] [--all]
//
// DIRECTORY is `test` of a checkout of Node, or a copy of it (github.com/denoland/node_test). No file in it is changed.

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const { values: options, positionals: [directory] } = parseArgs({
  allowPositionals: true,
  options: {
    node: { type: 'string', multiple: true, default: [process.execPath] },
    only: { type: 'string', default: '' },
    repeat: { type: 'string', default: '1' },
    all: { type: 'boolean', default: false },
  },
});
if (!directory) {
  console.error('usage: node npm/suite.mjs DIRECTORY [--node PATH]... [--only TEXT] [--repeat N] [--all]');
  process.exit(2);
}

const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.resolve(directory);
const TEST_TIMEOUT = 60_000;

const tests = ['parallel', 'sequential'].flatMap((part) => {
  const names = readdirSync(path.join(root, part)).filter((name) => /^test-.*\.m?js$/.test(name));
  return names.map((name) => path.join(part, name)).sort();
}).filter((test) => test.includes(options.only) &&
  (/cluster/.test(path.basename(test)) || /(require\(|from )['"](node:)?cluster['"]/.test(readFileSync(path.join(root, test), 'utf8'))));

function preparations(test) {
  const text = readFileSync(path.join(root, test), 'utf8');
  const words = (kind) => [...text.matchAll(new RegExp(`^// ${kind}: (.*)$`, 'gm'))].flatMap(([, line]) => line.trim().split(/\s+/));
  return { flags: words('Flags'), env: Object.fromEntries(words('Env').map((pair) => pair.split(/=(.*)/s).slice(0, 2))) };
}

// A function that the harness of a newer suite expects of Node itself. It is not loaded by `--import`, with which workers of Node 20 may miss
// their first message.
const shim = path.join(mkdtempSync(path.join(os.tmpdir(), 'suite-')), 'shim.cjs');
writeFileSync(shim, 'require("node:util").getCallSites ??= () => [{ scriptName: "", lineNumber: 0, columnNumber: 0 }];');
process.on('exit', () => rmSync(path.dirname(shim), { recursive: true }));

function run(node, test, dropIn, number) {
  const { flags, env } = preparations(test);
  const args = [...flags, '--require', shim];
  if (dropIn) args.push('--require', path.join(here, 'register.js'));
  const child = spawn(node, [...args, path.join(root, test)], {
    cwd: root,
    detached: true,
    env: { ...process.env, ...env, NODE_TEST_DIR: os.tmpdir(), TEST_THREAD_ID: String(number), TEST_SERIAL_ID: String(number) },
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => { output += text; });
  }
  return new Promise((resolve) => {
    const timer = setTimeout(() => process.kill(-child.pid, 'SIGKILL'), TEST_TIMEOUT);
    child.on('exit', (code, signal) => {
      const late = signal === 'SIGKILL';
      clearTimeout(timer);
      // Its workers too.
      try { process.kill(-child.pid, 'SIGKILL'); } catch { /* there are none */ }
      const skipped = /^1\.\.0 # Skipped/m.test(output);
      resolve({ result: late ? 'timeout' : code !== 0 ? 'FAIL' : skipped ? 'skip' : 'pass', output });
    });
  });
}

let worse = 0;
for (const node of options.node) {
  const counts = {};
  let number = 0;
  for (const test of tests) {
    for (let round = 0; round < Number(options.repeat); round++) {
      const stock = await run(node, test, false, ++number);
      const ours = await run(node, test, true, ++number);
      const both = `${stock.result} -> ${ours.result}`;
      counts[both] = (counts[both] ?? 0) + 1;
      const isWorse = stock.result === 'pass' && ours.result !== 'pass';
      worse += isWorse;
      if (isWorse || options.all || stock.result !== ours.result) {
        console.log(`${both}  ${test}`);
        if (isWorse) console.log(ours.output.trim().split('\n').slice(0, 25).map((line) => `    ${line}`).join('\n'));
      }
    }
  }
  console.log(`${node}: ${tests.length} tests, Node's own -> drop-in:`, counts);
}
process.exitCode = worse ? 1 : 0;
