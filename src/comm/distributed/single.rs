//! Communicator of a single process.

use std::sync::Arc;

use super::{CommDtype, CommError, Communicator, ReduceOp, Reducer, Work};

/// The only rank of its job; every collective returns immediately.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Communicator for Single {
    fn rank(&self) -> usize {
        0
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn local_size(&self) -> usize {
        1
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _: &mut [f32], _: ReduceOp, _: &str) -> Result<(), CommError> {
        Ok(())
    }

    fn all_reduce_f64(&self, _: &mut [f64], _: ReduceOp, _: &str) -> Result<(), CommError> {
        Ok(())
    }

    fn reducer(&self) -> Arc<dyn Reducer> {
        Arc::new(Self)
    }

    fn broadcast(&self, _: &mut [f32], _: usize, _: &str) -> Result<(), CommError> {
        Ok(())
    }

    fn broadcast_bytes(&self, _: &mut [u8], _: usize, _: &str) -> Result<(), CommError> {
        Ok(())
    }

    fn all_gather_bytes(&self, data: &[u8], _: &str) -> Result<Vec<Vec<u8>>, CommError> {
        Ok(vec![data.to_vec()])
    }

    fn barrier(&self, _: &str) -> Result<(), CommError> {
        Ok(())
    }

    fn abort(&self, code: i32, reason: &str) -> ! {
        eprintln!("error: {reason}");
        std::process::exit(code);
    }
}

impl Reducer for Single {
    fn start(&self, data: Vec<f32>, _: ReduceOp, _: CommDtype, _: &str) -> Box<dyn Work> {
        Box::new(Done(data))
    }
}

/// Result that needed no exchange.
struct Done(Vec<f32>);

impl Work for Done {
    fn wait(self: Box<Self>) -> Result<Vec<f32>, CommError> {
        Ok(self.0)
    }
}
