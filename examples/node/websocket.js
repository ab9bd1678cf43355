// An ordinary WebSocket server with `ws`: `npm install` in this folder, then `troop run -w auto websocket.js`.
const { WebSocketServer } = require('ws');

const server = new WebSocketServer({ port: Number(process.env.PORT ?? 8000) });
server.on('connection', (socket) => {
  socket.on('message', (data) => socket.send(`${process.pid} heard ${data}`));
});
