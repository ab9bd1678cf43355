//! Workers and programs that die, fork or never serve.
