'use strict';

// Runs a program with Node's `cluster` and with the drop-in: what it reports must be the same.

const { spawn } = require('node:child_process');
const path = require('node:path');

const REGISTER = path.join(__dirname, '..', 'register.js');
const TEST_TIMEOUT = 60_000;

/** Runs a program; resolves with its end, what it reported (lines of JSON), and its standard error. */
exports.run = (name, { dropIn = true, args = [], flags = [], env = {} } = {}) => new Promise((resolve, reject) => {
  const file = path.join(__dirname, 'programs', name);
  const child = spawn(process.execPath, [...(dropIn ? ['--require', REGISTER] : []), ...flags, file, ...args], {
    env: { ...process.env, NODE_OPTIONS: '', ...env },
    // A group of its own, so that nothing outlives a test that fails.
    detached: true,
  });
  let output = '';
  let errors = '';
  child.stdout.setEncoding('utf8').on('data', (text) => { output += text; });
  child.stderr.setEncoding('utf8').on('data', (text) => { errors += text; });
  const end = () => { try { process.kill(-child.pid, 'SIGKILL'); } catch { /* all gone */ } };
  const timer = setTimeout(() => {
    end();
    reject(new Error(`${name} did not end within ${TEST_TIMEOUT} ms; it said:\n${output}\n${errors}`));
  }, TEST_TIMEOUT);
  child.on('close', (code, signal) => {
    clearTimeout(timer);
    end();
    try {
      const reports = output.split('\n').filter(Boolean).map((line) => JSON.parse(line));
      resolve({ code, signal, reports, errors });
    } catch (cause) {
      reject(new Error(`${name} said something else than JSON:\n${output}\n${errors}`, { cause }));
    }
  });
});

/** The same with both. */
exports.both = async (name, options) => {
  const [stock, dropIn] = await Promise.all([false, true].map((dropIn) => exports.run(name, { ...options, dropIn })));
  return { stock, dropIn };
};
