'use strict';

// Chooses the inspector port of each worker.

const FLAG = /--inspect(?:-brk|-port)?|--debug-port/;
const LOWEST = 1024;
const HIGHEST = 65535;

let assigned = 0;

function badPort(value) {
  const shown = typeof value === 'string' ? `type string ('${value}')` : `type ${typeof value} (${String(value)})`;
  const error = new RangeError(
    `Port should be >= 0 and < 65536. Received ${value === null || value === undefined ? String(value) : shown}.`);
  error.code = 'ERR_SOCKET_BAD_PORT';
  return error;
}

function check(port) {
  const isText = typeof port === 'string';
  const number = Number(port);
  if ((typeof port !== 'number' && !isText) || (isText && port.trim() === '') ||
      number !== number >>> 0 || number > HIGHEST) {
    throw badPort(port);
  }
  return number | 0;
}

function automatic() {
  const port = process.debugPort + ++assigned;
  return port > HIGHEST ? port - HIGHEST + LOWEST - 1 : port;
}

/** Returns the flags to add to a worker's `execArgv`. */
exports.flags = ({ execArgv, inspectPort }) => {
  if (inspectPort === null) throw badPort(null);
  if (!execArgv.some((flag) => FLAG.test(flag)) && !FLAG.test(process.env.NODE_OPTIONS)) return [];
  const chosen = typeof inspectPort === 'function' ? inspectPort() : inspectPort ?? automatic();
  return [`--inspect-port=${check(chosen)}`];
};
