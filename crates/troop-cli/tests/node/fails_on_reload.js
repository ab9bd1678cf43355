// The first generation serves, later ones do not come up.
const fs = require('fs');
if (fs.existsSync(process.argv[2])) throw new Error('the new version is broken');
require('http').createServer((q, r) => r.end(`${process.pid}`)).listen(0, '127.0.0.1');
