'use strict';

// Workers use Node's own half of `cluster`.
const builtin = require('node:cluster');

module.exports = builtin.isPrimary ? require('./lib/primary') : builtin;
