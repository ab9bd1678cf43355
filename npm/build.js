'use strict';

// Builds the engine with cargo and puts it where `lib/native.js` looks first.

const { execFileSync } = require('node:child_process');
const { copyFileSync, renameSync } = require('node:fs');
const path = require('node:path');

const root = path.join(__dirname, '..');
const profile = process.argv.includes('--debug') ? 'dev' : 'addon';
const flags = ['build', '--package', 'troop-node', '--profile', profile];

execFileSync('cargo', flags, { cwd: root, stdio: 'inherit' });

const { target_directory: target } = JSON.parse(
  execFileSync('cargo', ['metadata', '--format-version=1', '--no-deps'], { cwd: root, maxBuffer: 1 << 26 }));
const libc = process.report.getReport().header.glibcVersionRuntime ? 'gnu' : 'musl';
const to = path.join(__dirname, 'lib', `troop.${process.platform}-${process.arch}-${libc}.node`);

// Renamed into place, so that a process that has it loaded keeps the old one.
copyFileSync(path.join(target, profile === 'dev' ? 'debug' : profile, 'libtroop_node.so'), `${to}.new`);
renameSync(`${to}.new`, to);
