'use strict';

// A server that answers five requests for each address, counted by rate-limiter-flexible for all workers.

const { createServer } = require('node:http');
const { RateLimiterCluster } = require('rate-limiter-flexible');

const limiter = new RateLimiterCluster({ keyPrefix: 'web', points: 5, duration: 600 });
const server = createServer(async (request, response) => {
  try {
    const { consumedPoints } = await limiter.consume(request.url);
    response.end(`${process.pid} ${consumedPoints}`);
  } catch (refused) {
    response.statusCode = refused instanceof Error ? 500 : 429;
    response.end(`${process.pid} ${refused instanceof Error ? refused : refused.consumedPoints}`);
  }
});
server.listen(0, '127.0.0.1');
