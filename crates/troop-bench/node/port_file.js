'use strict';
// Finds the file in which the running benchmark has written a port down.
const fs = require('fs');
const os = require('os');
const path = require('path');

// Not one that a benchmark which was killed has left.
const runs = (name) => fs.existsSync(`/proc/${/^troop-bench-(\d+)\.port$/.exec(name)?.[1]}`);

module.exports = path.join(os.tmpdir(), fs.readdirSync(os.tmpdir()).find(runs) ?? 'troop-bench.port');
