//! Escapes and forged lines in whatever a worker says.
