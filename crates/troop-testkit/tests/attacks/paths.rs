//! Unix listeners at paths whose directories change under the primary's hands.
