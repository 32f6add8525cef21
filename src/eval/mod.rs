//! (table of contents of eval)
