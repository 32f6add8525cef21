//! `nnunet-launch` on the first host.

use std::path::Path;
use std::process::Command;

use super::hosts::Cluster;

use crate::skip::skip;

/// Runs `command`, the program with its arguments, as one rank on each host. Returns `None` and prints a line if the
/// launcher has not been built.
pub fn over_all_hosts(cluster: &Cluster, hosts: usize, flags: &[&str], command: &Command) -> Option<Command> {
    let program = Path::new(env!("CARGO_BIN_EXE_nnunet-dist"));
    // The launcher is another package, so only a build of the whole workspace makes it.
    let launcher = program.with_file_name("nnunet-launch");
    if !can_launch(&launcher) {
        skip(format_args!("no working {}; `cargo build --workspace` makes it", launcher.display()));
        return None;
    }
    let seats: Vec<_> = (1..=hosts).map(|number| format!("{}:1", cluster.host(number))).collect();
    let mut launch = Command::new(launcher);
    launch.args(["-np", &hosts.to_string(), "-H", &seats.join(","), "--interface", "eth0"]);
    launch.arg("--rsh-agent").arg(cluster.remote_shell()).arg("--program").arg(command.get_program());
    launch.args(flags).arg("--").args(command.get_args());
    Some(cluster.on_first(&launch))
}

fn can_launch(launcher: &Path) -> bool {
    let help = Command::new(launcher).arg("--help").output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--dry-run"))
}
