'use strict';
// Prints 50 MB a second, in lines of 100 bytes, as far as it is let, and writes down how much that was.
const fs = require('fs');
const printed = require('./port_file.js').replace('.port', '.printed');
const chunk = Buffer.from(`${'x'.repeat(99)}\n`.repeat(5000));
let bytes = 0;
let busy = false;
setInterval(() => {
  if (busy) return;
  busy = true;
  process.stdout.write(chunk, () => {
    busy = false;
    bytes += chunk.length;
    // Whoever reads it finds all of it.
    fs.writeFileSync(`${printed}.new`, String(bytes));
    fs.renameSync(`${printed}.new`, printed);
  });
}, 10);
