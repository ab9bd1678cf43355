// A server that counts its requests with prom-client, as a cluster's worker does it: `troop admin --worker-metrics metrics` serves the sum of all.
const http = require('node:http');
const client = require('prom-client');

const requests = new client.Counter({ name: 'http_requests_total', help: 'Requests that were answered', labelNames: ['path'] });
const took = new client.Histogram({ name: 'http_request_seconds', help: 'Time that answers took' });

// Answers the primary, which asks for the metrics of this process.
new client.AggregatorRegistry();

http
  .createServer((request, response) => {
    const done = took.startTimer();
    response.end('hello\n');
    requests.inc({ path: request.url });
    done();
  })
  .listen(Number(process.env.PORT ?? 8000));
