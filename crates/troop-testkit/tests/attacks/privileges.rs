//! What a worker of another user inherits: terminal, capabilities, environment.
