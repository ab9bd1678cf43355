'use strict';

// The object that becomes `cluster`: a new one, or Node's.

const EventEmitter = require('node:events');

let target = null;

/** Makes an object `cluster`. Must be called before the first `get`. */
exports.use = (object) => { target ??= object; };

/** Returns the object. */
exports.get = () => (target ??= new EventEmitter());
