// Listens where a file says: lines of ports and paths; `{pid}` is the process, `{id}` the worker, `#1` at the end means only the worker of slot 1, `!` before a path removes it.
// A line `wait MS` pauses before the rest, `ready` says `ready` to the primary, `exit` ends it. With the message `leave` it disconnects by itself.
const cluster = require('cluster');
const fs = require('fs');
const answer = (q, r) => r.end(`${process.pid}`);
const places = fs.readFileSync(process.argv[2], 'utf8').split('\n').filter(Boolean);
const next = () => {
  const line = places.shift();
  if (line === undefined) return;
  const [what, slot] = line.split('#');
  const wait = /^wait (\d+)$/.exec(line);
  if (wait) return void setTimeout(next, Number(wait[1]));
  if (line === 'exit') process.exit(1);
  if (line === 'ready') process.send('ready');
  else if (slot === undefined || slot === process.env.TROOP_SLOT) {
    const place = what.replace('{pid}', process.pid).replace('{id}', cluster.worker.id).replace(/^!/, '');
    if (place.includes('/')) fs.mkdirSync(require('path').dirname(place), { recursive: true });
    if (what.startsWith('!')) fs.rmSync(place, { force: true });
    const server = require('http').createServer(answer);
    if (/^\d+$/.test(place)) server.listen(Number(place), '127.0.0.1');
    else server.listen(place);
  }
  next();
};
process.on('message', (message) => message === 'leave' && cluster.worker.disconnect());
next();
