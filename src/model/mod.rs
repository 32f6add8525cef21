//! (table of contents of model)
