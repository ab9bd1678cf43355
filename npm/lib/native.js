'use strict';

// Loads the engine: the one built beside this file, or the one in the package for this platform.

const { here } = require('./platforms');

function load() {
  const platform = here();
  const tried = [];
  for (const name of [`./troop.${platform}.node`, `@troop/cluster-${platform}`]) {
    try {
      return require(name);
    } catch (error) {
      tried.push(`${name}: ${error.message.split('\n')[0]}`);
    }
  }
  throw new Error(
    `@troop/cluster has no engine for ${platform}. Tried ${tried.join('; ')}. ` +
    'In a checkout, build it with `npm run build`; otherwise install the package again, with optional dependencies.');
}

module.exports = load();
