//! (table of contents of infer)
