'use strict';

// The platforms with an engine, by the names of their packages, and Rust's names of them.

const fs = require('node:fs');

exports.TARGETS = {
  'linux-x64-gnu': 'x86_64-unknown-linux-gnu',
  'linux-arm64-gnu': 'aarch64-unknown-linux-gnu',
  'linux-x64-musl': 'x86_64-unknown-linux-musl',
  'linux-arm64-musl': 'aarch64-unknown-linux-musl',
};

/** Returns the interpreter of a 64-bit program, which loads its libraries: `PT_INTERP` of elf(5). */
function interpreter(file) {
  const fd = fs.openSync(file, 'r');
  try {
    const read = (at, length) => {
      const bytes = Buffer.alloc(length);
      return bytes.subarray(0, fs.readSync(fd, bytes, 0, length, at));
    };
    const head = read(0, 64);
    const [entry, size, count] = [Number(head.readBigUInt64LE(32)), head.readUInt16LE(54), head.readUInt16LE(56)];
    const entries = read(entry, size * count);
    for (let at = 0; at < entries.length; at += size) {
      if (entries.readUInt32LE(at) !== 3) continue;
      const [offset, length] = [8, 32].map((field) => Number(entries.readBigUInt64LE(at + field)));
      return read(offset, Math.min(length, 4096)).toString();
    }
  } finally {
    fs.closeSync(fd);
  }
}

/** Whether this Node was built for musl. (A diagnostic report says so too, but resolves the names of all open sockets' peers first.) */
function isMusl() {
  try {
    const name = interpreter('/proc/self/exe');
    if (name) return name.includes('ld-musl');
  } catch {
    // For example without /proc.
  }
  return fs.readdirSync('/lib').some((name) => name.startsWith('ld-musl-'));
}

/** Returns the platform of this machine. */
exports.here = () => `${process.platform}-${process.arch}-${isMusl() ? 'musl' : 'gnu'}`;
