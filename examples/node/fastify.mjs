// An ordinary Fastify app: `npm install` in this folder, then `troop run -w auto fastify.mjs`.
import Fastify from 'fastify';

const app = Fastify();
app.get('/', async () => `hello from process ${process.pid}\n`);
await app.listen({ port: Number(process.env.PORT ?? 8000) });
