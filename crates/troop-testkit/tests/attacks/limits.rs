//! What a worker can make the primary keep: memory, descriptors, listeners.
