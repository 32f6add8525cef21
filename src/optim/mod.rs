//! (table of contents of optim)
