//! `docs/reference/nnunet-launch.md` is what the launcher says of itself. `NNUNET_UPDATE_DOCS=1` writes it anew.

#[path = "../../tests/common/generated.rs"]
mod generated;

use std::process::{Command, Stdio};

#[test]
fn the_reference_is_what_the_launcher_understands() {
    let mut help = Command::new(env!("CARGO_BIN_EXE_nnunet-launch"));
    // Lines are as long as a terminal is wide, where there is one.
    help.arg("--help").env_remove("COLUMNS").stdin(Stdio::null()).stderr(Stdio::null());
    let help = String::from_utf8(help.output().unwrap().stdout).unwrap();
    let page = format!(
        "# nnunet-launch\n\n<!-- Made by `make docs` of what the program says of itself. -->\n\n\
         [Launch, supervise and restart](../how-to/launch.md) says what it is for.\n\n```text\n{}\n```\n",
        help.trim_end()
    );
    generated::check("docs/reference/nnunet-launch.md", &page);
}
