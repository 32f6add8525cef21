//! The end of a job that failed: who says so, and how it is made sure that nobody goes on waiting.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// The exit code of a Rust program that panicked.
const PANIC: i32 = 101;
/// The exit code of one whose GPU's memory is full.
const MEMORY: i32 = 5;
/// What Burn, CubeCL, cuDNN and the driver say of that, among other things.
const MEMORY_IS_FULL: [&str; 4] =
    ["BufferTooBig", "can't allocate buffer", "CUDA_ERROR_OUT_OF_MEMORY", "the GPU's memory is full"];

/// How long the orderly ways of ending a job may take before this process leaves without them.
const GRACE: Duration = Duration::from_secs(5);

/// Makes a panic on any thread of this process the end of the whole job: `end` must end all ranks with the given code.
///
/// A panic that only unwinds would either end in a destructor that waits for the other ranks, or take a worker thread
/// away from a rank that goes on waiting for it. Both hang the job.
pub(super) fn end_job_on_panic(rank: usize, end: fn(i32) -> !) {
    panic::set_hook(Box::new(move |info| {
        if is_memory(info) {
            say(&memory_message(&format!("rank {rank}: ")));
            end(MEMORY)
        }
        say(&panic_message(rank, info));
        end(PANIC)
    }));
}

/// Makes a GPU whose memory is full end this process with one line that says what to do, for operations of Burn's can fail
/// in no other way than by a panic. Other panics remain what they are.
pub fn explain_full_memory() {
    let otherwise = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if is_memory(info) {
            say(&memory_message(""));
            leave_now(MEMORY)
        }
        otherwise(info)
    }));
}

fn is_memory(info: &PanicHookInfo<'_>) -> bool {
    let message = info.payload_as_str().unwrap_or_default();
    MEMORY_IS_FULL.iter().any(|known| message.contains(known))
}

fn memory_message(who: &str) -> String {
    format!(
        "error: {who}the GPU's memory is full: lower --batch-size (training.batch_size), use --amp or --gradient-checkpointing, or plan for less with \
         `nnunet-dist plan --gpu-memory`"
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

/// Prints a line in one write, so that ranks that speak at the same time do not mix their words.
pub(super) fn say(line: &str) {
    // Where not even stderr is left there is nobody to tell.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The exit code as the operating system can carry it; the end of a failed job never looks like success.
pub(super) fn exit_status(code: i32) -> i32 {
    if (1..=255).contains(&code) { code } else { 1 }
}

/// Lets one thread through; any other that comes to end the job as well waits here for its end.
pub(super) fn only_once() {
    static ENDING: AtomicBool = AtomicBool::new(false);
    while ENDING.swap(true, Ordering::SeqCst) {
        thread::sleep(GRACE);
    }
}

/// Waits a moment: the other ranks notice the same fault at about the same time, and what they know of it is lost when
/// this one ends the job before they have said it.
pub(super) fn let_others_speak() {
    thread::sleep(Duration::from_millis(500));
}

/// Ends this process in a few seconds whatever the caller hangs in meanwhile.
///
/// Every launcher ends the other ranks when one leaves without a farewell.
pub(super) fn leave_soon(status: i32) {
    let leave = move || {
        thread::sleep(GRACE);
        leave_now(status)
    };
    // Where no thread can be had, ending the job is left to MPI alone.
    let _ = thread::Builder::new().name("end of job".into()).spawn(leave);
}

/// Ends this process without the exit handlers of its libraries, which may wait for threads that are stuck.
pub(super) fn leave_now(status: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// As CubeCL's allocator and our convolutions panic.
    #[test]
    fn a_full_memory_is_told_from_other_panics() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let hook = panic::take_hook();
        let noted = seen.clone();
        panic::set_hook(Box::new(move |info| noted.lock().unwrap().push(is_memory(info))));
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
        assert!(memory_message("rank 3: ").starts_with("error: rank 3: the GPU's memory is full: lower --batch-size"));
    }

    #[test]
    fn no_failure_looks_like_success() {
        assert_eq!([1, 75, 255].map(exit_status), [1, 75, 255]);
        assert_eq!([0, 256, 512, -1, i32::MIN].map(exit_status), [1; 5]);
    }
}
