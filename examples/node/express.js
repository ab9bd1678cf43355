// An ordinary Express app: `npm install` in this folder, then `troop run -w auto express.js`.
const express = require('express');

const app = express();
app.get('/', (request, response) => response.send(`hello from process ${process.pid}\n`));
app.listen(Number(process.env.PORT ?? 8000));
