// As ../../../kept.js answers, by Next's own server.

import cluster from 'node:cluster';

export const config = { api: { bodyParser: false } };

export default async function handler(request, response) {
  const time = /\/slow\/(\d+)$/.exec(request.url)?.[1];
  if (time) await new Promise((resolve) => { setTimeout(resolve, Number(time)); });
  if (!request.readableEnded) await new Promise((resolve) => { request.resume().on('end', resolve); });
  response.status(200).send(`${cluster.worker.id} ${process.pid}\n`);
}
