'use strict';

// Builds the engine with cargo and copies it to the place where `lib/native.js` looks first.
//
//     node npm/build.js [--debug] [--platform NAME]

const { execFileSync } = require('node:child_process');
const { copyFileSync, renameSync } = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { TARGETS, here } = require('./lib/platforms');

const root = path.join(__dirname, '..');

/** Builds the engine and returns its path. */
exports.build = ({ debug = false, platform = here() } = {}) => {
  const target = TARGETS[platform];
  if (!target) throw new Error(`there is no engine for ${platform}, only for ${Object.keys(TARGETS).join(', ')}`);
  const profile = debug ? 'dev' : 'addon';
  const flags = ['build', '--package', 'troop-node', '--profile', profile];
  // For other platforms, cargo needs their target and linker.
  const foreign = platform !== here();
  if (foreign) flags.push('--target', target);
  const env = { ...process.env };
  // An addon is a shared library, which musl's targets build only without a static C runtime.
  if (platform.endsWith('musl')) env.RUSTFLAGS = `${env.RUSTFLAGS ?? ''} -C target-feature=-crt-static`.trim();
  execFileSync('cargo', flags, { cwd: root, stdio: 'inherit', env });

  const { target_directory: directory } = JSON.parse(
    execFileSync('cargo', ['metadata', '--format-version=1', '--no-deps'], { cwd: root, maxBuffer: 1 << 26 }));
  return path.join(directory, foreign ? target : '', debug ? 'debug' : profile, 'libtroop_node.so');
};

if (require.main === module) {
  const { values } = parseArgs({ options: { debug: { type: 'boolean' }, platform: { type: 'string' } } });
  const to = path.join(__dirname, 'lib', `troop.${values.platform ?? here()}.node`);
  // Renamed into place, so that a process that has loaded the old file keeps it.
  copyFileSync(exports.build(values), `${to}.new`);
  renameSync(`${to}.new`, to);
}
