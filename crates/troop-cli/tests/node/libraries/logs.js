'use strict';

// A server that logs ten lines for each request by log4js, as LOGS says.

const { createServer } = require('node:http');
const log4js = require('log4js');

log4js.configure({
  appenders: { file: { type: 'file', filename: process.env.LOG_FILE } },
  categories: { default: { appenders: ['file'], level: 'info' } },
  ...JSON.parse(process.env.LOGS),
});
const log = log4js.getLogger();
const server = createServer((request, response) => {
  for (let n = 0; n < 10; n++) log.info(`line ${n} of ${process.pid} "cluster":1`);
  response.end(`${process.pid}`);
});
server.listen(0, '127.0.0.1');
