'use strict';

// The object that becomes `cluster`: one of its own, or Node's.

const EventEmitter = require('node:events');

let target = null;

/** Makes an object `cluster`. To be called before anybody has asked for it. */
exports.use = (object) => { target ??= object; };

/** The object. */
exports.get = () => (target ??= new EventEmitter());
