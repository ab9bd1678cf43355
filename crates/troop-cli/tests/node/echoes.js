// Sends everything back. Ends when it is disconnected and its clients are gone.
require('net').createServer((client) => client.on('error', () => {}).pipe(client)).listen(0, '127.0.0.1');
