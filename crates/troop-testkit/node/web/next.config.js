'use strict';

module.exports = { skipTrailingSlashRedirect: true, turbopack: { root: __dirname } };
