'use strict';

// `node --require @troop/cluster/register program.js`: whoever asks for `cluster` gets the drop-in.

const builtin = require('node:cluster');

if (builtin.isPrimary) {
  require('./lib/target').use(builtin);
  require('./lib/primary');
  require('node:module').syncBuiltinESMExports();
}
