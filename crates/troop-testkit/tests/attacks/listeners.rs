//! Listeners that a worker breaks, leaves behind, or takes from others.
