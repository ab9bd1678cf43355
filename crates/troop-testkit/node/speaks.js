'use strict';
// Sends a message at once, and creates a file when it is written. Argument: the file.
const fs = require('node:fs');

process.send('first', () => fs.writeFileSync(process.argv[2], ''));
process.on('message', () => {});
