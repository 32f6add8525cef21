//! (table of contents of telemetry)
