require('http').createServer((q, r) => {
  const answer = () => r.end(`${process.pid} ${process.env.GREETING} ${process.cwd()}`);
  if (q.url === '/slow') setTimeout(answer, 700);
  else answer();
}).listen(0, '127.0.0.1');
console.log('printed by a worker');
