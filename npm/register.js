'use strict';

// `node --require @troop/cluster/register program.js`: `require('cluster')` returns the drop-in.

const builtin = require('node:cluster');

if (builtin.isPrimary) {
  require('./lib/target').use(builtin);
  require('./lib/primary');
  require('node:module').syncBuiltinESMExports();
}
