//! Memory of the machine, for budgets that are checked before anything is allocated.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Mount point of control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Returns the memory limit in bytes: the machine's memory or, if lower, the limit of the control group (cgroup v2 or
/// v1); `None` if the kernel reports neither.
pub fn memory_limit() -> Option<u64> {
    static LIMIT: OnceLock<Option<u64>> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limits = groups.lines().flat_map(limit_files).filter_map(|path| fs::read_to_string(path).ok());
        // "max" means no limit.
        limits.filter_map(|text| text.trim().parse().ok()).chain(machine).min()
    })
}

/// Checks that `bytes` fit into the memory of this machine.
///
/// # Errors
/// Returns the end of a message: "X GiB of memory, more than the Y GiB of this machine".
pub fn check_fits(bytes: u64) -> Result<(), String> {
    let limit = memory_limit().unwrap_or(u64::MAX);
    match bytes > limit {
        true => Err(format!("{} of memory, more than the {} of this machine", gibibytes(bytes), gibibytes(limit))),
        false => Ok(()),
    }
}

/// Product of extents and sizes in bytes; saturates.
pub fn byte_product(factors: impl IntoIterator<Item = usize>) -> u64 {
    factors.into_iter().fold(1u64, |product, factor| product.saturating_mul(factor as u64))
}

fn gibibytes(bytes: u64) -> String {
    let gib = bytes as f64 / (1u64 << 30) as f64;
    if bytes == u64::MAX {
        return "over 10^10 GiB".to_owned();
    }
    if gib < 100.0 { format!("{gib:.1} GiB") } else { format!("{gib:.0} GiB") }
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
    fn the_limits_of_all_ancestor_groups_apply() {
        let files = limit_files("0::/slurm/job_7");
        let expected = ["slurm/job_7/memory.max", "slurm/memory.max", "memory.max"];
        assert_eq!(files, expected.map(|file| Path::new(CGROUPS).join(file)));
        assert_eq!(limit_files("5:cpu,memory:/"), [Path::new(CGROUPS).join("memory/memory.limit_in_bytes")]);
        assert!(limit_files("4:cpu:/a").is_empty() && limit_files("nonsense").is_empty());
    }

    #[test]
    fn finds_the_memory_of_the_machine() {
        assert_eq!(total("MemTotal:       24000 kB\nMemFree: 1 kB\n"), Some(24_576_000));
        assert!(memory_limit().is_none_or(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn no_machine_has_an_exbibyte() {
        assert_eq!(byte_product([usize::MAX, 2, 3]), u64::MAX);
        assert_eq!(check_fits(1), Ok(()));
        if memory_limit().is_some() {
            assert!(check_fits(1 << 60).unwrap_err().starts_with("1073741824 GiB of memory, more than the "));
        }
    }
}
