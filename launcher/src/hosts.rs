//! Host lists: `-H node1:8,node2:8` and host files.

use std::ffi::CStr;
use std::str::FromStr;

/// Host with its number of processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name or address of the host.
    pub name: String,
    /// Number of processes; `None` if not specified.
    pub slots: Option<usize>,
}

impl FromStr for Host {
    type Err = String;

    /// Parses `NAME` or `NAME:SLOTS`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, slots) = match text.split_once(':') {
            Some((name, slots)) => (name, Some(positive(slots)?)),
            None => (text, None),
        };
        if name.is_empty() || name.starts_with('-') || name.contains(|c: char| c.is_whitespace()) {
            return Err(format!("`{text}` is not HOST or HOST:SLOTS"));
        }
        Ok(Self { name: name.to_owned(), slots })
    }
}

/// Parses a host file of Open MPI (`node1 slots=8`) or MPICH (`node1:8`); `#` starts a comment.
///
/// # Errors
///
/// Returns an error text with the line number.
pub fn parse_hostfile(text: &str) -> Result<Vec<Host>, String> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.split('#').next().unwrap_or("").trim()));
    let hosts: Vec<Host> = lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| parse_line(line).map_err(|defect| format!("line {number}: {defect}")))
        .collect::<Result<_, _>>()?;
    if hosts.is_empty() { Err("contains no hosts".to_owned()) } else { Ok(hosts) }
}

/// Returns whether `name` refers to the machine of the launcher.
pub fn is_this_machine(name: &str) -> bool {
    is_same_machine(name, &this_machine())
}

/// Returns the kernel's host name, or an empty string.
fn this_machine() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: the buffer has the given length; the last byte stays zero.
    let answer = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) };
    let name = CStr::from_bytes_until_nul(&buffer).ok().filter(|_| answer == 0);
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn is_same_machine(name: &str, this: &str) -> bool {
    let short = |name: &str| name.split('.').next().unwrap_or("").to_owned();
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    let is_loopback =
        name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    // Compare without the domain if one of the names lacks it.
    let is_name =
        name == this || (!is_address && short(name) == short(this) && !(name.contains('.') && this.contains('.')));
    is_loopback || (!this.is_empty() && is_name)
}

fn parse_line(line: &str) -> Result<Host, String> {
    let mut words = line.split_whitespace();
    let mut host: Host = words.next().unwrap_or("").parse()?;
    for word in words {
        match word.split_once('=') {
            Some(("slots", value)) => host.slots = Some(positive(value)?),
            // Open MPI's upper limit for oversubscription, which the launcher never uses.
            Some(("max_slots" | "max-slots", _)) => {}
            _ => return Err(format!("`{word}` is not supported; write `{} slots=N`", host.name)),
        }
    }
    Ok(host)
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&slots| slots > 0).ok_or_else(|| format!("`{text}` is not a number of processes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, slots: Option<usize>) -> Host {
        Host { name: name.to_owned(), slots }
    }

    #[test]
    fn parses_hosts_with_and_without_slots() {
        assert_eq!("node1:8".parse(), Ok(host("node1", Some(8))));
        assert_eq!("10.0.0.1".parse(), Ok(host("10.0.0.1", None)));
        for wrong in ["", ":4", "a:", "a:0", "a:x", "a b", "-oProxyCommand=x"] {
            assert!(wrong.parse::<Host>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn parses_host_files_of_open_mpi_and_mpich() {
        let text = "# cluster\nnode1 slots=8 max_slots=16\n\nnode2:4   # spare\nnode3\n";
        let hosts = [host("node1", Some(8)), host("node2", Some(4)), host("node3", None)];
        assert_eq!(parse_hostfile(text).unwrap(), hosts);
        assert!(parse_hostfile("a\nb cpus=3\n").unwrap_err().starts_with("line 2: `cpus=3`"));
        assert!(parse_hostfile("# nobody\n").is_err());
    }

    #[test]
    fn this_machine_has_several_names() {
        for name in ["node1", "node1.cluster", "localhost", "127.0.0.1", "::1"] {
            assert!(is_same_machine(name, "node1"), "{name}");
        }
        assert!(is_same_machine("node1", "node1.cluster"));
        assert!(!is_same_machine("node1.other", "node1.cluster"));
        assert!(!is_same_machine("node2", "node1") && !is_same_machine("10.0.0.1", "10"));
        assert!(is_this_machine("localhost"));
    }
}
