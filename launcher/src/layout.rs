//! Number of processes and their hosts, and the GPUs of this host.

use std::process::Stdio;
use std::time::Duration;
use std::{env, fs};

use tokio::process::Command;
use tokio::time::timeout;

use crate::error::LaunchError;
use crate::hosts::{Host, is_this_machine};
use crate::task::Task;

/// Requested placement.
#[derive(Debug)]
pub enum Placement {
    /// This host only.
    ThisHost,
    /// Hosts from a list.
    Hosts(Vec<Host>),
    /// Slurm allocation, with its number of tasks if known.
    Slurm { tasks: Option<usize> },
}

/// Number of processes on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// Name of the host.
    pub host: String,
    /// Number of processes, at least one.
    pub processes: usize,
}

/// Processes of a job per host; the ranks of a host are consecutive.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// Total number of processes; `None` if Slurm decides.
    pub processes: Option<usize>,
    /// Hosts in rank order; empty for this host only, and with Slurm.
    pub slots: Vec<Slots>,
    /// Note to the user about a number of processes chosen by default.
    pub notice: Option<String>,
}

/// GPUs of this host.
#[derive(Debug, Clone, Copy)]
pub struct Gpus {
    /// Number of usable GPUs.
    pub here: usize,
    /// Whether several ranks may share one GPU (NCCL 2.30 and later, `NCCL_MULTI_RANK_GPU_ENABLE=1`).
    pub shared: bool,
}

impl Layout {
    /// Determines the number of processes and their hosts.
    ///
    /// # Errors
    ///
    /// Returns an error if there are more processes than slots, or more processes on this host than GPUs if the task
    /// uses GPUs.
    pub fn new(requested: Option<usize>, placement: &Placement, task: &Task, gpus: Gpus) -> Result<Self, LaunchError> {
        let layout = match placement {
            Placement::ThisHost => Self::on_this_host(requested, task, gpus.here),
            Placement::Hosts(hosts) => Self::on_hosts(requested, hosts)?,
            Placement::Slurm { tasks } => Self { processes: requested.or(*tasks), slots: Vec::new(), notice: None },
        };
        if task.wants_gpu() && !gpus.shared {
            layout.check_gpus(placement, gpus.here)?;
        }
        Ok(layout)
    }

    /// Returns whether there is one process only, so that output needs no rank prefix.
    pub fn is_single(&self) -> bool {
        self.processes == Some(1)
    }

    /// Returns the hosts that are accessed through the remote shell.
    pub fn remote_hosts(&self) -> Vec<String> {
        self.slots.iter().map(|slots| slots.host.clone()).filter(|host| !is_this_machine(host)).collect()
    }

    fn on_this_host(requested: Option<usize>, task: &Task, gpus: usize) -> Self {
        let (processes, notice) = match requested {
            Some(number) => (number, None),
            None if task.wants_cpu() => (1, Some("--device cpu: starting 1 process; use -np N for more".to_owned())),
            None if gpus == 0 => (1, Some("no GPU on this host: starting 1 process; use -np N for more".to_owned())),
            None => (gpus, Some(format!("starting 1 process per GPU, {gpus} in total"))),
        };
        Self { processes: Some(processes), slots: Vec::new(), notice }
    }

    fn on_hosts(requested: Option<usize>, hosts: &[Host]) -> Result<Self, LaunchError> {
        let (slots, notice) = slots_per_host(requested, hosts);
        let available: usize = slots.iter().map(|slots| slots.processes).sum();
        let processes = requested.unwrap_or(available);
        if processes > available {
            return Err(LaunchError::Usage(format!(
                "{processes} processes do not fit into the {available} slots of the hosts: lower -np, or specify more \
                 slots as HOST:N"
            )));
        }
        Ok(Self { processes: Some(processes), slots: assign_slots(&slots, processes), notice })
    }

    /// Only this host's GPUs are known before the ranks run; ranks on other hosts check theirs.
    fn check_gpus(&self, placement: &Placement, gpus: usize) -> Result<(), LaunchError> {
        let here = match placement {
            Placement::ThisHost => self.processes.unwrap_or(0),
            Placement::Hosts(_) => {
                self.slots.iter().filter(|slots| is_this_machine(&slots.host)).map(|slots| slots.processes).sum()
            }
            Placement::Slurm { .. } => 0,
        };
        match (here, gpus) {
            (0, _) => Ok(()),
            (_, 0) => Err(LaunchError::Missing(
                "--device cuda, but this host shows no GPU (nvidia-smi -L, CUDA_VISIBLE_DEVICES): use --device cpu"
                    .into(),
            )),
            _ if here > gpus => Err(LaunchError::Usage(format!(
                "{here} processes but {gpus} GPUs on this host: use -np {gpus}, HOST:{gpus}, or more hosts"
            ))),
            _ => Ok(()),
        }
    }
}

/// Returns the slots of each host; duplicate hosts are merged.
fn slots_per_host(requested: Option<usize>, hosts: &[Host]) -> (Vec<Slots>, Option<String>) {
    let mut merged: Vec<(String, Option<usize>)> = Vec::new();
    for host in hosts {
        match merged.iter_mut().find(|(name, _)| *name == host.name) {
            Some((_, slots)) => *slots = Some(slots.unwrap_or(1) + host.slots.unwrap_or(1)),
            None => merged.push((host.name.clone(), host.slots)),
        }
    }
    let silent = merged.iter().filter(|(_, slots)| slots.is_none()).count();
    let (each, rest) = match requested {
        // No slot counts given: the processes are distributed evenly, and the first hosts take the remainder.
        Some(number) if silent == merged.len() => (number / silent, number % silent),
        _ => (1, 0),
    };
    let notice = (silent > 0 && requested.is_none()).then(|| "starting 1 process per host; use HOST:N for more".into());
    let slots_of_host = |(index, (host, slots)): (usize, (String, Option<usize>))| Slots {
        host,
        processes: slots.unwrap_or(each + usize::from(index < rest)),
    };
    (merged.into_iter().enumerate().map(slots_of_host).collect(), notice)
}

/// Assigns `processes` to the slots, host by host; hosts without processes are omitted.
fn assign_slots(slots: &[Slots], processes: usize) -> Vec<Slots> {
    let mut left = processes;
    let mut taken = Vec::new();
    for slots in slots {
        let number = slots.processes.min(left);
        left -= number;
        if number > 0 {
            taken.push(Slots { host: slots.host.clone(), processes: number });
        }
    }
    taken
}

/// Directory in which NVIDIA's kernel driver lists its GPUs, one folder each.
const DRIVER: &str = "/proc/driver/nvidia/gpus";

/// Timeout for `nvidia-smi`, which may hang forever with a broken driver.
const NVIDIA_SMI_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the number of usable GPUs of this host: the installed ones that `CUDA_VISIBLE_DEVICES` selects.
pub async fn count_gpus() -> usize {
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

    fn layout(requested: Option<usize>, hosts: &str, device: &str, gpus: usize) -> Result<Layout, LaunchError> {
        let task = Task::new(Some("p".into()), vec!["train".into(), "--device".into(), device.into()]);
        let hosts: Vec<Host> = hosts.split(',').filter(|h| !h.is_empty()).map(|h| h.parse().unwrap()).collect();
        let placement = if hosts.is_empty() { Placement::ThisHost } else { Placement::Hosts(hosts) };
        Layout::new(requested, &placement, &task, Gpus { here: gpus, shared: false })
    }

    fn slots(requested: Option<usize>, hosts: &str) -> String {
        let layout = layout(requested, hosts, "auto", 0).unwrap();
        let slots = layout.slots.iter().map(|slots| format!("{}:{}", slots.host, slots.processes));
        slots.collect::<Vec<_>>().join(",")
    }

    #[test]
    fn this_host_has_a_process_per_gpu() {
        assert_eq!(layout(None, "", "cuda", 4).unwrap().processes, Some(4));
        assert_eq!(layout(Some(2), "", "cuda", 4).unwrap().processes, Some(2));
        assert_eq!(layout(None, "", "cpu", 4).unwrap().processes, Some(1));
        let alone = layout(None, "", "auto", 0).unwrap();
        assert!(alone.is_single() && alone.notice.unwrap().contains("no GPU"));
    }

    #[test]
    fn fills_hosts_in_order() {
        assert_eq!(slots(None, "a:4,b:2"), "a:4,b:2");
        assert_eq!(slots(Some(5), "a:4,b:2"), "a:4,b:1");
        assert_eq!(slots(Some(3), "a:4,b:2"), "a:3");
        assert_eq!(slots(None, "a,b"), "a:1,b:1");
        assert_eq!(slots(Some(5), "a,b"), "a:3,b:2");
        assert_eq!(slots(Some(1), "a,b"), "a:1");
        assert_eq!(slots(None, "a,a,b:2,b"), "a:2,b:3");
        assert!(layout(Some(7), "a:4,b:2", "auto", 0).unwrap_err().to_string().contains("6 slots"));
        assert!(layout(None, "a,b", "auto", 0).unwrap().notice.is_some());
    }

    #[test]
    fn rejects_more_processes_than_gpus() {
        let text = layout(Some(8), "", "cuda", 4).unwrap_err().to_string();
        assert!(text.contains("8 processes but 4 GPUs") && text.contains("-np 4"), "{text}");
        assert_eq!(layout(None, "", "cuda", 0).unwrap_err().code(), 4);
        assert_eq!(layout(None, "localhost:2", "cuda", 1).unwrap_err().code(), 2);
        assert!(layout(None, "elsewhere:2", "cuda", 0).is_ok());
        let task = Task::new(Some("p".into()), vec!["train".into(), "--device=cuda".into()]);
        assert!(Layout::new(Some(2), &Placement::ThisHost, &task, Gpus { here: 1, shared: true }).is_ok());
    }

    #[test]
    fn counts_gpus_in_the_output_of_nvidia_smi() {
        let text = "GPU 0: NVIDIA A100 (UUID: GPU-1)\n  MIG 1g.5gb Device 0: (UUID: MIG-1)\nGPU 1: NVIDIA A100\n";
        assert_eq!(count_in_list(text), 2);
        assert_eq!(count_in_list("No devices found.\n"), 0);
    }

    #[test]
    fn counts_devices_in_cuda_visible_devices() {
        let cases = [("0,1,2", 3), ("2, 0", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("0,9,1", 1), ("GPU-a,MIG-b", 2)];
        for (mask, number) in cases {
            assert_eq!(visible(mask, 4), number, "{mask}");
        }
        assert_eq!(visible("GPU-a", 0), 0);
    }
}
