//! How many processes run, and on which hosts.

use crate::error::LaunchError;
use crate::hosts::{Host, is_this_machine};
use crate::task::Task;

/// What the user asked for.
#[derive(Debug)]
pub enum Place {
    /// This host.
    Here,
    /// A list of hosts.
    Hosts(Vec<Host>),
    /// The allocation of Slurm, which may have said its number of tasks.
    Slurm { tasks: Option<usize> },
}

/// Processes of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seats {
    /// The host's name.
    pub host: String,
    /// At least one.
    pub processes: usize,
}

/// The processes of a job, host by host; the ranks of a host are consecutive.
#[derive(Debug, PartialEq, Eq)]
pub struct Layout {
    /// All processes; `None` where Slurm decides.
    pub processes: Option<usize>,
    /// The hosts, in the order of their ranks; empty for this host, and with Slurm.
    pub seats: Vec<Seats>,
    /// What the user should know about a number that they did not give.
    pub notice: Option<String>,
}

/// What this host can do.
#[derive(Debug, Clone, Copy)]
pub struct Gpus {
    /// GPUs that its processes can use.
    pub here: usize,
    /// Whether several ranks may share one (NCCL from 2.30 on, `NCCL_MULTI_RANK_GPU_ENABLE=1`).
    pub shared: bool,
}

impl Layout {
    /// Decides the number of processes and their places.
    ///
    /// # Errors
    ///
    /// More processes than slots, or more processes that want a GPU than this host has GPUs.
    pub fn new(asked: Option<usize>, place: &Place, task: &Task, gpus: Gpus) -> Result<Self, LaunchError> {
        let layout = match place {
            Place::Here => Self::here(asked, task, gpus.here),
            Place::Hosts(hosts) => Self::on_hosts(asked, hosts)?,
            Place::Slurm { tasks } => Self { processes: asked.or(*tasks), seats: Vec::new(), notice: None },
        };
        if task.wants_gpu() && !gpus.shared {
            layout.check_gpus(place, gpus.here)?;
        }
        Ok(layout)
    }

    /// Whether lines need no rank in front of them.
    pub fn is_single(&self) -> bool {
        self.processes == Some(1)
    }

    /// The hosts that are reached through the remote shell.
    pub fn remote_hosts(&self) -> Vec<String> {
        self.seats.iter().map(|seats| seats.host.clone()).filter(|host| !is_this_machine(host)).collect()
    }

    fn here(asked: Option<usize>, task: &Task, gpus: usize) -> Self {
        let (processes, notice) = match asked {
            Some(number) => (number, None),
            None if task.wants_cpu() => (1, Some("--device cpu: 1 process; -np N for more".to_owned())),
            None if gpus == 0 => (1, Some("no GPU on this host: 1 process; -np N for more".to_owned())),
            None => (gpus, Some(format!("1 process for each of the {gpus} GPUs of this host"))),
        };
        Self { processes: Some(processes), seats: Vec::new(), notice }
    }

    fn on_hosts(asked: Option<usize>, hosts: &[Host]) -> Result<Self, LaunchError> {
        let (slots, notice) = slots(asked, hosts);
        let available: usize = slots.iter().map(|seats| seats.processes).sum();
        let processes = asked.unwrap_or(available);
        if processes > available {
            return Err(LaunchError::Usage(format!(
                "{processes} processes do not fit into the {available} slots of the hosts: lower -np, or give more slots \
                 as HOST:N"
            )));
        }
        Ok(Self { processes: Some(processes), seats: fill(&slots, processes), notice })
    }

    /// Only this host's GPUs are known before the ranks run; those of other hosts are checked by the ranks themselves.
    fn check_gpus(&self, place: &Place, gpus: usize) -> Result<(), LaunchError> {
        let here = match place {
            Place::Here => self.processes.unwrap_or(0),
            Place::Hosts(_) => {
                self.seats.iter().filter(|seats| is_this_machine(&seats.host)).map(|seats| seats.processes).sum()
            }
            Place::Slurm { .. } => 0,
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

/// The slots of each host, a host that is listed twice once.
fn slots(asked: Option<usize>, hosts: &[Host]) -> (Vec<Seats>, Option<String>) {
    let mut merged: Vec<(String, Option<usize>)> = Vec::new();
    for host in hosts {
        match merged.iter_mut().find(|(name, _)| *name == host.name) {
            Some((_, slots)) => *slots = Some(slots.unwrap_or(1) + host.slots.unwrap_or(1)),
            None => merged.push((host.name.clone(), host.slots)),
        }
    }
    let silent = merged.iter().filter(|(_, slots)| slots.is_none()).count();
    let (each, rest) = match asked {
        // Nobody said how many: the processes are spread evenly, the first hosts taking what is left over.
        Some(number) if silent == merged.len() => (number / silent, number % silent),
        _ => (1, 0),
    };
    let notice = (silent > 0 && asked.is_none()).then(|| "1 process per host without a number: HOST:N for more".into());
    let seat = |(index, (host, slots)): (usize, (String, Option<usize>))| Seats {
        host,
        processes: slots.unwrap_or(each + usize::from(index < rest)),
    };
    (merged.into_iter().enumerate().map(seat).collect(), notice)
}

/// Takes `processes` seats, host after host; hosts without any are left out.
fn fill(slots: &[Seats], processes: usize) -> Vec<Seats> {
    let mut left = processes;
    let mut taken = Vec::new();
    for seats in slots {
        let number = seats.processes.min(left);
        left -= number;
        if number > 0 {
            taken.push(Seats { host: seats.host.clone(), processes: number });
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(asked: Option<usize>, hosts: &str, device: &str, gpus: usize) -> Result<Layout, LaunchError> {
        let task = Task::new(Some("p".into()), vec!["train".into(), "--device".into(), device.into()]);
        let hosts: Vec<Host> = hosts.split(',').filter(|h| !h.is_empty()).map(|h| h.parse().unwrap()).collect();
        let place = if hosts.is_empty() { Place::Here } else { Place::Hosts(hosts) };
        Layout::new(asked, &place, &task, Gpus { here: gpus, shared: false })
    }

    fn seats(asked: Option<usize>, hosts: &str) -> String {
        let layout = layout(asked, hosts, "auto", 0).unwrap();
        let seats = layout.seats.iter().map(|seats| format!("{}:{}", seats.host, seats.processes));
        seats.collect::<Vec<_>>().join(",")
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
    fn hosts_are_filled_in_their_order() {
        assert_eq!(seats(None, "a:4,b:2"), "a:4,b:2");
        assert_eq!(seats(Some(5), "a:4,b:2"), "a:4,b:1");
        assert_eq!(seats(Some(3), "a:4,b:2"), "a:3");
        assert_eq!(seats(None, "a,b"), "a:1,b:1");
        assert_eq!(seats(Some(5), "a,b"), "a:3,b:2");
        assert_eq!(seats(Some(1), "a,b"), "a:1");
        assert_eq!(seats(None, "a,a,b:2,b"), "a:2,b:3");
        assert!(layout(Some(7), "a:4,b:2", "auto", 0).unwrap_err().to_string().contains("6 slots"));
        assert!(layout(None, "a,b", "auto", 0).unwrap().notice.is_some());
    }

    #[test]
    fn no_gpu_is_shared() {
        let text = layout(Some(8), "", "cuda", 4).unwrap_err().to_string();
        assert!(text.contains("8 processes but 4 GPUs") && text.contains("-np 4"), "{text}");
        assert_eq!(layout(None, "", "cuda", 0).unwrap_err().code(), 4);
        assert_eq!(layout(None, "localhost:2", "cuda", 1).unwrap_err().code(), 2);
        assert!(layout(None, "elsewhere:2", "cuda", 0).is_ok());
        let task = Task::new(Some("p".into()), vec!["train".into(), "--device=cuda".into()]);
        assert!(Layout::new(Some(2), &Place::Here, &task, Gpus { here: 1, shared: true }).is_ok());
    }
}
