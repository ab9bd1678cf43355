// Leaves a grandchild behind that ends soon, for process 1 to reap.
require('child_process').spawn('sh', ['-c', 'sleep 0.2 & exit 0'], { stdio: 'ignore' }).on('exit', () => {
  require('net').createServer(() => {}).listen(0, '127.0.0.1');
});
