'use strict';

// What is published works where it is installed.

const assert = require('node:assert');
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { test } = require('node:test');
const { here } = require('../lib/platforms');

test('the packages work in a project that has installed them', () => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'troop-'));
  try {
    execFileSync(process.execPath, [path.join(__dirname, '..', 'pack.js'), directory, '--debug'], { stdio: 'pipe' });
    const project = path.join(directory, 'project', 'node_modules', '@troop');
    // As `npm install` would: what `npm pack` takes along, and nothing else.
    for (const name of ['cluster', `cluster-${here()}`]) {
      const [{ filename }] = JSON.parse(execFileSync('npm', ['pack', '--json', '--pack-destination', directory], { cwd: path.join(directory, name), stdio: 'pipe' }));
      fs.mkdirSync(path.join(project, name), { recursive: true });
      execFileSync('tar', ['-xzf', path.join(directory, filename), '--strip-components=1', '-C', path.join(project, name)]);
    }
    assert.deepStrictEqual(fs.readdirSync(path.join(project, 'cluster', 'lib')).filter((name) => name.endsWith('.node')), []);
    const program = path.join(directory, 'project', 'program.js');
    fs.writeFileSync(program, `
      const cluster = require('cluster');
      if (cluster.isPrimary) cluster.fork().on('online', () => { console.log(typeof cluster.reload, cluster === require('@troop/cluster')); cluster.disconnect(); });
    `);
    const output = execFileSync(process.execPath, ['--require', '@troop/cluster/register', program], { cwd: path.dirname(program), encoding: 'utf8' });
    assert.strictEqual(output, 'function true\n');
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
});
