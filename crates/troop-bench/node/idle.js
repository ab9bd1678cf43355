'use strict';
// A worker that does nothing and stays.
setInterval(() => {}, 1 << 30);
