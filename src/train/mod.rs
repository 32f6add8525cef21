//! (table of contents of train)
