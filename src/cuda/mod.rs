//! What NVIDIA's libraries share: the driver, and where the others are found. All are opened at run time, so that one
//! program serves machines with and without them.

mod driver;
mod search;

pub(crate) use driver::{Context, Driver, DriverError, Event, Memory, Stream};
pub(crate) use search::open_first;
