//! Termination of a failed job: the error message, and ending all ranks so that none waits forever.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Exit code of a Rust program that panicked.
const PANIC_EXIT_CODE: i32 = 101;
/// Exit code when the GPU runs out of memory.
const OUT_OF_MEMORY_EXIT_CODE: i32 = 5;
/// Substrings of the out-of-memory messages of Burn, CubeCL, cuDNN and the CUDA driver.
const OUT_OF_MEMORY_MESSAGES: [&str; 4] =
    ["BufferTooBig", "can't allocate buffer", "CUDA_ERROR_OUT_OF_MEMORY", "the GPU's memory is full"];

/// Time allowed for a clean termination of the job before this process exits on its own.
const GRACE_PERIOD: Duration = Duration::from_secs(5);

/// Installs a panic hook so that a panic on any thread ends the whole job: `end` must end all ranks with the given
/// code.
///
/// A panic that only unwinds would either block in a destructor that waits for the other ranks, or remove a worker
/// thread from a rank that keeps waiting for it. Both hang the job.
pub(super) fn end_job_on_panic(rank: usize, end: fn(i32) -> !) {
    panic::set_hook(Box::new(move |info| {
        if is_out_of_memory(info) {
            print_line(&out_of_memory_message(&format!("rank {rank}: ")));
            end(OUT_OF_MEMORY_EXIT_CODE)
        }
        print_line(&panic_message(rank, info));
        end(PANIC_EXIT_CODE)
    }));
}

/// Installs a panic hook that ends this process with a one-line explanation when the GPU runs out of memory, since
/// operations of Burn can only fail by a panic. Other panics are passed to the previous hook.
pub fn install_out_of_memory_hook() {
    let otherwise = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if is_out_of_memory(info) {
            print_line(&out_of_memory_message(""));
            exit_immediately(OUT_OF_MEMORY_EXIT_CODE)
        }
        otherwise(info)
    }));
}

fn is_out_of_memory(info: &PanicHookInfo<'_>) -> bool {
    let message = info.payload_as_str().unwrap_or_default();
    OUT_OF_MEMORY_MESSAGES.iter().any(|known| message.contains(known))
}

fn out_of_memory_message(who: &str) -> String {
    format!(
        "error: {who}the GPU's memory is full: lower --batch-size (training.batch_size), use --amp or --gradient-checkpointing, or \
         plan for a smaller GPU with `nnunet-dist plan --gpu-memory`"
    )
}

fn panic_message(rank: usize, info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("(no message)");
    let mut text = format!("rank {rank}: panic: {message}");
    if let Some(location) = info.location() {
        text += &format!(" at {}:{}", location.file(), location.line());
    }
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        text += &format!("\n{backtrace}");
    }
    text
}

/// Prints a line in a single write, so that output of different ranks is not interleaved.
pub(super) fn print_line(line: &str) {
    // If stderr is closed, the line cannot be reported anywhere.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Maps `code` to an exit status that the operating system supports. A failed job never exits with status 0.
pub(super) fn exit_status(code: i32) -> i32 {
    if (1..=255).contains(&code) { code } else { 1 }
}

/// Lets one thread through. Any other thread that also tries to end the job blocks here.
pub(super) fn block_if_already_ending() {
    static ENDING: AtomicBool = AtomicBool::new(false);
    while ENDING.swap(true, Ordering::SeqCst) {
        thread::sleep(GRACE_PERIOD);
    }
}

/// Sleeps briefly so that other ranks, which detect the same fault at about the same time, can print their errors
/// before this rank ends the job.
pub(super) fn wait_for_other_errors() {
    thread::sleep(Duration::from_millis(500));
}

/// Ends this process within a few seconds, even if the caller hangs.
///
/// Every launcher ends the other ranks when one exits without `MPI_Finalize`.
pub(super) fn exit_after_grace_period(status: i32) {
    let leave = move || {
        thread::sleep(GRACE_PERIOD);
        exit_immediately(status)
    };
    // If the thread cannot be started, only MPI ends the job.
    let _ = thread::Builder::new().name("end of job".into()).spawn(leave);
}

/// Ends this process without running the exit handlers of its libraries, which may wait for stuck threads.
pub(super) fn exit_immediately(status: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Uses the panic messages of CubeCL's allocator and of our convolutions.
    #[test]
    fn recognizes_out_of_memory_panics() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let hook = panic::take_hook();
        let noted = seen.clone();
        panic::set_hook(Box::new(move |info| noted.lock().unwrap().push(is_out_of_memory(info))));
        let refused: Result<(), _> = Err("BufferTooBig { size: 68719476736, backtrace: disabled }");
        let panics: [fn(Result<(), &str>); 3] = [
            |refused| refused.unwrap(),
            |_| panic!("the GPU's memory is full: cuDNN needs 1000 bytes of workspace (Forward)"),
            |_| panic!("index out of bounds"),
        ];
        for panics in panics {
            assert!(panic::catch_unwind(|| panics(refused)).is_err());
        }
        panic::set_hook(hook);
        assert_eq!(*seen.lock().unwrap(), [true, true, false]);
        assert!(
            out_of_memory_message("rank 3: ")
                .starts_with("error: rank 3: the GPU's memory is full: lower --batch-size")
        );
    }

    #[test]
    fn never_maps_a_failure_to_status_0() {
        assert_eq!([1, 75, 255].map(exit_status), [1, 75, 255]);
        assert_eq!([0, 256, 512, -1, i32::MIN].map(exit_status), [1; 5]);
    }
}
