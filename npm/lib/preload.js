'use strict';

// Has workers load `moves.js` before their program, by which idle connections move to other workers when theirs drains.

const fs = require('node:fs');
const path = require('node:path');

const SCRIPT = path.join(__dirname, 'moves.js');
/** Options with which Node may not read the script, or would not read `NODE_OPTIONS` from a file any more. */
const PERMISSION = /(?:^|\s)--(?:(?:experimental-)?permission|experimental-(?:default-)?config-file|experimental-policy|policy-integrity|env-file(?:-if-exists)?)\b/;
const said = new Set();

function sayOnce(why) {
  if (said.has(why)) return;
  said.add(why);
  process.emitWarning(`idle connections do not move to other workers when theirs drains: ${why} (moveConnections: false turns this off)`,
    { type: 'TroopWarning' });
}

/** Whether every user can read the script. */
function isPublic() {
  for (let at = path.dirname(SCRIPT); ; at = path.dirname(at)) {
    if (!(fs.statSync(at).mode & 0o001)) return false;
    if (at === path.dirname(at)) break;
  }
  return (fs.statSync(SCRIPT).mode & 0o004) !== 0;
}

function obstacle({ execArgv, uid }, options) {
  try {
    const restricted = PERMISSION.exec([...execArgv, options].join(' '));
    if (restricted) return `node cannot be told to load ${SCRIPT} with ${restricted[0].trim()}`;
    if (uid !== undefined && uid !== process.geteuid() && !isPublic()) return `user ${uid} cannot read ${SCRIPT}`;
    // Where this code was bundled into another file.
    if (!fs.statSync(SCRIPT).isFile()) return `${SCRIPT} is missing`;
  } catch (error) {
    return error.message;
  }
}

/** Returns what has to be added to a worker's environment. */
exports.variables = (settings, { NODE_OPTIONS: given }) => {
  if (settings.moveConnections === false) return {};
  const why = obstacle(settings, given ?? '');
  if (why) {
    sayOnce(why);
    return {};
  }
  const quoted = SCRIPT.replace(/["\\]/g, '\\$&');
  const load = `--require "${quoted}"`;
  // The script puts it back.
  return given === undefined ? { NODE_OPTIONS: load, TROOP_NODE_OPTIONS: '' } :
    { NODE_OPTIONS: `${load} ${given}`, TROOP_NODE_OPTIONS: `=${given}` };
};
