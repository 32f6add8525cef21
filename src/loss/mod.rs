//! (table of contents of loss)
