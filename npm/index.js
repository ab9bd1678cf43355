'use strict';

// In a worker, Node's own half of `cluster` is all there is to it.
const builtin = require('node:cluster');

module.exports = builtin.isPrimary ? require('./lib/primary') : builtin;
