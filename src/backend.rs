//! The one file in which the compute backends are instantiated.
