//! (table of contents of augment)
