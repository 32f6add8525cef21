//! (table of contents of ops)
