//! Checks that `docs/reference/nnunet-launch.md` matches the help text. `NNUNET_UPDATE_DOCS=1` updates it.

#[path = "../../tests/common/generated.rs"]
mod generated;

use std::process::{Command, Stdio};

#[test]
fn the_reference_is_what_the_launcher_understands() {
    let mut help = Command::new(env!("CARGO_BIN_EXE_nnunet-launch"));
    // With a terminal, the line length would depend on its width.
    help.arg("--help").env_remove("COLUMNS").stdin(Stdio::null()).stderr(Stdio::null());
    let help = String::from_utf8(help.output().unwrap().stdout).unwrap();
    let page = format!(
        "# nnunet-launch\n\n<!-- Generated from the program's help text by `make docs`. -->\n\n\
         See [Launch, supervise and restart](../how-to/launch.md) for its use.\n\n```text\n{}\n```\n",
        help.trim_end()
    );
    generated::check("docs/reference/nnunet-launch.md", &page);
}
