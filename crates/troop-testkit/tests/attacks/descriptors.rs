//! Descriptors that a worker asks for by number.
