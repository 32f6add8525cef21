//! (table of contents of preprocess)
