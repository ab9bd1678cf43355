'use strict';

// Prepares the packages for publishing: one with the JavaScript, and one with the engine for each platform, on which the first depends.
//
//     node npm/pack.js DIRECTORY [--platform NAME]... [--debug]
//
// and then `npm publish` in each of the directories, the engines' first.

const fs = require('node:fs');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { build } = require('./build');
const { TARGETS, here } = require('./lib/platforms');

const { values, positionals: [directory] } = parseArgs({
  allowPositionals: true,
  options: { platform: { type: 'string', multiple: true, default: [here()] }, debug: { type: 'boolean', default: false } },
});
if (!directory) {
  console.error('usage: node npm/pack.js DIRECTORY [--platform NAME]... [--debug]');
  process.exit(2);
}

const main = JSON.parse(fs.readFileSync(path.join(__dirname, 'package.json'), 'utf8'));
const { version, license, repository, engines, os } = main;
const LICENSES = ['LICENSE-APACHE', 'LICENSE-MIT'];

function lay(name, description, files) {
  const to = path.join(directory, name);
  fs.rmSync(to, { recursive: true, force: true });
  fs.mkdirSync(to, { recursive: true });
  fs.writeFileSync(path.join(to, 'package.json'), `${JSON.stringify(description, null, 2)}\n`);
  for (const file of LICENSES) fs.copyFileSync(path.join(__dirname, '..', file), path.join(to, file));
  for (const [from, at] of files) {
    fs.mkdirSync(path.dirname(path.join(to, at)), { recursive: true });
    fs.copyFileSync(from, path.join(to, at));
  }
}

for (const platform of values.platform) {
  const [, cpu, libc] = platform.split('-');
  const engine = `troop.${platform}.node`;
  lay(`cluster-${platform}`, {
    name: `@troop/cluster-${platform}`,
    version,
    description: `The engine of @troop/cluster for ${platform}`,
    license,
    repository,
    engines,
    os,
    cpu: [cpu],
    libc: [libc === 'gnu' ? 'glibc' : libc],
    main: engine,
    files: [engine],
  }, [[build({ platform, debug: values.debug }), engine]]);
}

const { scripts, ...published } = main;
const parts = ['index.js', 'index.mjs', 'index.d.ts', 'register.js', 'README.md',
  ...fs.readdirSync(path.join(__dirname, 'lib')).filter((name) => name.endsWith('.js')).map((name) => `lib/${name}`)];
lay('cluster', {
  ...published,
  optionalDependencies: Object.fromEntries(Object.keys(TARGETS).map((platform) => [`@troop/cluster-${platform}`, version])),
}, parts.map((part) => [path.join(__dirname, part), part]));
