'use strict';

/** A line of JSON for the test. */
exports.report = (...what) => process.stdout.write(`${JSON.stringify(what)}\n`);

/** What can be compared of an error. */
exports.plain = ({ name, code, message, errno, syscall }) => ({ name, code, message, errno, syscall });
