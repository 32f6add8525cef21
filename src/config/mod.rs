//! (table of contents of config)
