//! Number of GPUs of this host that a process can use.

use std::env;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// Directory in which NVIDIA's kernel driver lists its GPUs, one folder each.
const DRIVER: &str = "/proc/driver/nvidia/gpus";

/// Timeout for `nvidia-smi`, which may hang forever with a broken driver.
const NVIDIA_SMI_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the number of usable GPUs of this host: the installed ones that `CUDA_VISIBLE_DEVICES` selects.
pub async fn count() -> usize {
    let installed = match listed_by_tool().await {
        Some(number) => number,
        // Fallback only: in a container, the driver may list GPUs that the container cannot access.
        None => fs::read_dir(DRIVER).map_or(0, |folder| folder.flatten().count()),
    };
    env::var("CUDA_VISIBLE_DEVICES").map_or(installed, |mask| visible(&mask, installed))
}

async fn listed_by_tool() -> Option<usize> {
    let mut tool = Command::new("nvidia-smi");
    tool.arg("-L").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = timeout(NVIDIA_SMI_TIMEOUT, tool.output()).await.ok()?.ok()?;
    output.status.success().then(|| count_in_list(&String::from_utf8_lossy(&output.stdout)))
}

/// Counts the GPUs in the output of `nvidia-smi -L`. Lines of MIG instances are indented and do not count.
fn count_in_list(text: &str) -> usize {
    text.lines().filter(|line| line.starts_with("GPU ")).count()
}

/// Returns the number of installed devices that a value of `CUDA_VISIBLE_DEVICES` selects.
///
/// The list contains indices or UUIDs and ends at the first invalid entry (CUDA C++ Programming Guide, "CUDA
/// Environment Variables").
fn visible(mask: &str, installed: usize) -> usize {
    let is_valid = |entry: &&str| match entry.parse::<usize>() {
        Ok(index) => index < installed,
        Err(_) => entry.starts_with("GPU-") || entry.starts_with("MIG-"),
    };
    let shown = mask.split(',').map(str::trim).take_while(is_valid).count();
    if installed == 0 { 0 } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_the_tool() {
        let text = "GPU 0: NVIDIA A100 (UUID: GPU-1)\n  MIG 1g.5gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA A100\n";
        assert_eq!(count_in_list(text), 2);
        assert_eq!(count_in_list("No devices found.\n"), 0);
    }

    #[test]
    fn the_mask_of_cuda() {
        let cases = [("0,1,2", 3), ("2, 0", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("0,9,1", 1), ("GPU-a,MIG-b", 2)];
        for (mask, number) in cases {
            assert_eq!(visible(mask, 4), number, "{mask}");
        }
        assert_eq!(visible("GPU-a", 0), 0);
    }
}
