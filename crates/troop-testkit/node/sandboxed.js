// Serves, and says what it could do with files outside of what it may use.
'use strict';
const fs = require('fs');
const http = require('http');

const attempt = (what) => {
  try {
    return what() ?? 'done';
  } catch (e) {
    return e.code;
  }
};
const [, , secret, outside, inside] = process.argv;
http
  .createServer((request, response) => {
    const status = fs.readFileSync('/proc/self/status', 'utf8');
    response.end(
      JSON.stringify({
        'read outside': attempt(() => fs.readFileSync(secret, 'utf8')),
        'list outside': attempt(() => fs.readdirSync(outside).length),
        'write outside': attempt(() => fs.writeFileSync(`${outside}/new`, 'x')),
        'empty outside': attempt(() => fs.truncateSync(`${outside}/open`)),
        'write inside': attempt(() => fs.writeFileSync(`${inside}/mine`, 'x')),
        'move outside': attempt(() => fs.renameSync(`${inside}/mine`, `${outside}/mine`)),
        'read the primary': attempt(() => fs.readFileSync(`/proc/${process.ppid}/environ`).length),
        NoNewPrivs: Number(/^NoNewPrivs:\s*(\d)/m.exec(status)[1]),
        Seccomp: Number(/^Seccomp:\s*(\d)/m.exec(status)[1]),
      }),
    );
  })
  .listen(0, '127.0.0.1');
