//! What a primary decides besides connections and the number of its workers: whom to recycle, how a
//! hung worker ends, which health checks count, which addresses clients miss, and the shares of
//! activated sockets.
//!
//! Each of these is a small state machine. The shell measures (memory, queues, the outcome of a
//! check) and reports it together with the time; the machine answers with what to do.

pub mod activation;
pub mod hang;
pub mod health;
pub mod missed;
pub mod recycle;
