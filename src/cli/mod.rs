//! (table of contents of cli)
