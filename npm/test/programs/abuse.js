'use strict';

// What a worker may do to its channel.

const cluster = require('node:cluster');
const fs = require('node:fs');
const net = require('node:net');
const { report } = require('./report');

const ABUSES = {
  'no JSON': () => 'not json\n',
  'an empty line': () => '\n',
  'two hundred thousand brackets': () => `${'['.repeat(200_000)}\n`,
  'a question without fields': () => '{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1}\n',
  'a port that is none': () =>
    '{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":99999999,"addressType":4,"seq":1}\n',
  'the same question twice': () =>
    '{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":"127.0.0.1","port":0,"addressType":4,"seq":1}\n'.repeat(2),
  'an answer that nobody waits for': () => '{"cmd":"NODE_HANDLE_ACK"}\n',
  'a refusal that nobody waits for': () => '{"cmd":"NODE_HANDLE_NACK"}\n',
  'null': () => 'null\n',
  'a number': () => '7\n',
  'an end of something unknown': () => '{"cmd":"NODE_CLUSTER","act":"close","key":"none","seq":1}\n',
  'names of prototypes': () => '{"cmd":"NODE_CLUSTER","act":"__proto__","seq":1}\n{"cmd":"NODE_CLUSTER","act":"constructor","seq":1}\n',
  'a handle that is none': () => '{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"x"}\n',
  'a handle of no type': () => '{"cmd":"NODE_HANDLE","type":"no.Type","msg":"x"}\n',
  'listening on nothing': () => '{"cmd":"NODE_CLUSTER","act":"listening","seq":1}\n',
  'thirty million bytes without an end': () => 'x'.repeat(30_000_000),
};

if (cluster.isPrimary) {
  const names = Object.keys(ABUSES);
  let left = names.length;
  cluster.fork({ SERVE: 'yes' }).once('listening', ({ port }) => {
    for (const name of names) {
      const worker = cluster.fork({ ABUSE: name });
      worker.on('exit', () => {
        if (--left > 0) return;
        // The primary is there, and so is the other worker.
        net.connect(port, '127.0.0.1').setEncoding('utf8').once('data', (text) => {
          report(text);
          cluster.disconnect();
        });
      });
    }
  });
} else if (process.env.SERVE) {
  net.createServer((socket) => socket.end('served')).listen(0, '127.0.0.1');
} else {
  // The bytes themselves, past Node. The primary may end this process for it.
  let bytes = Buffer.from(ABUSES[process.env.ABUSE]());
  const write = () => {
    try {
      while (bytes.length > 0) bytes = bytes.subarray(fs.writeSync(process.channel.fd, bytes));
      setTimeout(() => process.exit(0), 300);
    } catch (error) {
      if (error.code === 'EAGAIN') setTimeout(write, 1);
      else process.exit(1);
    }
  };
  write();
}
