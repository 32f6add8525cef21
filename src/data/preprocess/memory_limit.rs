//! Memory limit of this process.

use std::fs;
use std::path::{Path, PathBuf};

/// Mount point of control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Returns the memory limit in bytes: the machine's memory or, if lower, the limit of the control group (cgroup v2 or
/// v1); `None` if the kernel reports neither.
pub fn memory_limit() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().flat_map(limit_files).filter_map(|path| fs::read_to_string(path).ok());
    // "max" means no limit.
    limits.filter_map(|text| text.trim().parse().ok()).chain(machine).min()
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Returns the limit files of the control group in `group` (`ID:CONTROLLERS:PATH`) and of all its ancestors; every
/// limit applies.
fn limit_files(group: &str) -> Vec<PathBuf> {
    let mut parts = group.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (root, file) = match controllers {
        "" => (PathBuf::from(CGROUPS), "memory.max"),
        names if names.split(',').any(|name| name == "memory") => {
            (Path::new(CGROUPS).join("memory"), "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let path = root.join(path.trim_start_matches('/'));
    path.ancestors().take_while(|folder| folder.starts_with(&root)).map(|folder| folder.join(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_all_groups_above_count() {
        let files = limit_files("0::/slurm/job_7");
        let expected = ["slurm/job_7/memory.max", "slurm/memory.max", "memory.max"];
        assert_eq!(files, expected.map(|file| Path::new(CGROUPS).join(file)));
        assert_eq!(limit_files("5:cpu,memory:/"), [Path::new(CGROUPS).join("memory/memory.limit_in_bytes")]);
        assert!(limit_files("4:cpu:/a").is_empty() && limit_files("nonsense").is_empty());
    }

    #[test]
    fn the_machines_memory_is_found() {
        assert_eq!(total("MemTotal:       24000 kB\nMemFree: 1 kB\n"), Some(24_576_000));
        assert!(memory_limit().is_none_or(|bytes| bytes > 1 << 20));
    }
}
