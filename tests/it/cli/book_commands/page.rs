//! A page: its statements and their results.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::commands::Commands;
use crate::pages::{Block, shell_blocks};

/// A page that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// One command of a page, on one or several lines.
#[derive(Debug, PartialEq)]
pub struct Statement {
    /// Line number of its first line.
    pub line: usize,
    pub text: String,
    /// Reason for not running it.
    pub skipped: Option<String>,
}

#[derive(Debug)]
pub struct Page {
    /// Path within the project.
    pub name: String,
    pub statements: Vec<Statement>,
}

/// The reason that a statement was not run, or was changed.
#[derive(Debug, PartialEq)]
pub struct Note {
    /// Index of the statement in the page.
    pub statement: usize,
    /// True if it was not run at all; false if a smaller version was run.
    pub is_absent: bool,
    pub text: String,
}

/// A page that ran to its end.
#[derive(Debug)]
pub struct Done {
    pub page: Page,
    pub notes: Vec<Note>,
    pub elapsed: Duration,
}

impl Page {
    pub fn new(name: &str, text: &str) -> Self {
        let statements = shell_blocks(text).iter().flat_map(statements).collect();
        Self { name: name.to_owned(), statements }
    }

    /// Splits a page whose sections are independent into one page per section. Line numbers stay those of the page.
    pub fn sections(name: &str, text: &str) -> Vec<Self> {
        let headings = text.lines().enumerate().filter(|(_, line)| line.starts_with("## "));
        let headings: Vec<(usize, &str)> = headings.collect();
        let ends = headings.iter().skip(1).map(|(line, _)| *line).chain([usize::MAX]);
        let section = |((start, heading), end): (&(usize, &str), usize)| {
            let lines =
                text.lines().enumerate().map(|(line, text)| if (*start..end).contains(&line) { text } else { "" });
            let anchor = heading.trim_start_matches("## ").replace(' ', "-");
            Self::new(&format!("{name}#{anchor}"), &lines.collect::<Vec<_>>().join("\n"))
        };
        headings.iter().zip(ends).map(section).collect()
    }

    /// Runs all statements in `folder`, in order, in one shell.
    ///
    /// # Errors
    /// Returns the first statement that fails, with its output.
    pub fn run(self, folder: &Path, commands: &Commands) -> Result<Done, String> {
        let began = Instant::now();
        let state = tempfile::tempdir().unwrap();
        let (script, output) = (state.path().join("script"), state.path().join("output"));
        fs::write(&script, self.script()).unwrap();
        let stream = || Stdio::from(File::options().append(true).create(true).open(&output).unwrap());
        let mut shell = Command::new("bash");
        shell
            .arg(&script)
            .env("HOME", folder)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(stream())
            .stderr(stream());
        // A process group, so that all its processes can be killed together.
        shell.process_group(0);
        let status = wait(shell.settings(state.path(), commands).spawn().unwrap());
        end_servers(state.path());
        let text = String::from_utf8_lossy(&fs::read(&output).unwrap()).into_owned();
        println!("{text}");
        match status {
            Some(status) if status.success() => Ok(self.done(state.path(), began.elapsed())),
            _ => Err(self.failure(state.path(), status, &text)),
        }
    }

    /// The script: before each statement, a command that records its index and prints it.
    fn script(&self) -> String {
        let mut script = String::from(
            "set -eo pipefail\n\
             command_not_found_handle() {\n\
             \x20   echo \"docs-test: $1 is in no table of tests/it/cli/book_commands/commands.rs\" >&2\n\
             \x20   return 127\n\
             }\n\
             __succeeded() { [ \"$1\" -eq 0 ] || exit \"$1\"; }\n\
             __statement() { echo \"$1\" >\"$BOOK_STATE/at\"; printf '\\n%s\\n' \"$2\"; }\n",
        );
        for (number, statement) in self.statements.iter().enumerate() {
            let shown = format!("{}:{}: {}", self.name, statement.line, statement.text).replace('\'', r"'\''");
            script += &format!("__statement {number} '{shown}'\n");
            if statement.skipped.is_none() {
                // `set -e` does not end the shell if `a` fails in `a && b`.
                script += &format!("{}\n__succeeded $?\n", statement.text);
            }
        }
        script
    }

    fn done(self, state: &Path, elapsed: Duration) -> Done {
        let notes = fs::read_to_string(state.join("notes")).unwrap_or_default();
        let notes = notes.lines().map(|line| {
            let [statement, kind, text] = line.splitn(3, '\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
            Note { statement: statement.parse().unwrap(), is_absent: kind == "absent", text: text.to_owned() }
        });
        Done { notes: notes.collect(), page: self, elapsed }
    }

    fn failure(&self, state: &Path, status: Option<ExitStatus>, output: &str) -> String {
        let at = fs::read_to_string(state.join("at")).unwrap_or_default().trim().parse().unwrap_or(0usize);
        let Statement { line, text, .. } = &self.statements[at];
        let how = status.map_or_else(|| "hangs".to_owned(), |status| format!("failed ({status})"));
        let lines: Vec<&str> = output.lines().collect();
        let last = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("{}:{line}: `{text}` {how}\n{last}", self.name)
    }
}

/// The environment of a page.
trait Settings {
    fn settings(&mut self, state: &Path, commands: &Commands) -> &mut Self;
}

impl Settings for Command {
    fn settings(&mut self, state: &Path, commands: &Commands) -> &mut Self {
        for (name, _) in std::env::vars_os() {
            let name_of = name.to_string_lossy();
            if ["SLURM_", "NNUNET_", "OMP_NUM", "RUST_", "RAYON_"].iter().any(|prefix| name_of.starts_with(prefix)) {
                self.env_remove(&name);
            }
        }
        // Test machines are containers that run as root, with few cores.
        for setting in ["ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_rmaps_base_oversubscribe"] {
            self.env(format!("OMPI_{setting}"), "1");
        }
        self.env("OMPI_MCA_mpi_yield_when_idle", "1").env("OMPI_MCA_hwloc_base_binding_policy", "none");
        // As the environment module sets it.
        self.env("NNUNET_DIST_HOME", crate::pages::root());
        self.env("BOOK_STATE", state).envs(commands.settings()).env("PATH", &commands.folder)
    }
}

/// Waits for the shell; `None` if it had to be killed.
fn wait(mut shell: Child) -> Option<ExitStatus> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(status) = shell.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: the process group belongs to the shell, which has not been waited for.
    unsafe { libc::kill(-(shell.id() as libc::pid_t), libc::SIGKILL) };
    shell.wait().unwrap();
    None
}

/// Asks the servers that the page started to stop.
fn end_servers(state: &Path) {
    for server in fs::read_to_string(state.join("servers")).unwrap_or_default().lines() {
        let _ = Command::new("kill").arg(server).stderr(Stdio::null()).status();
    }
}

/// The statements of a block: each has as many lines as the shell needs to parse it.
fn statements(block: &Block) -> Vec<Statement> {
    let mut statements = Vec::new();
    let mut open: Option<Statement> = None;
    for (line, text) in &block.lines {
        let mut statement = match open.take() {
            Some(begun) => Statement { text: begun.text + "\n" + text, ..begun },
            None if text.trim().is_empty() || text.trim().starts_with('#') => continue,
            None => Statement { line: *line, text: text.clone(), skipped: block.skipped.clone() },
        };
        if is_whole(&statement.text) {
            statement.text = statement.text.trim_end().to_owned();
            statements.push(statement);
        } else {
            open = Some(statement);
        }
    }
    // An incomplete statement fails when it is run.
    statements.extend(open);
    statements
}

/// True if a shell needs no further line to parse the text.
fn is_whole(text: &str) -> bool {
    let output = Command::new("bash").args(["-n", "-c", text]).output().unwrap();
    !text.ends_with('\\') && output.status.success() && output.stderr.is_empty()
}

/// The path of a page within the project.
pub fn name_of(path: &Path) -> String {
    let inside = path.strip_prefix(crate::pages::root()).map_or_else(|_| path.to_owned(), PathBuf::from);
    inside.display().to_string()
}

#[test]
fn statements_are_split_as_a_shell_parses_them() {
    let page = Page::new(
        "page",
        "```sh\n# first\na \\\n    b   # and\n\nfor i in 1 2; do\n    c $i\ndone\ncat <<E\nd\nE\n```\ntext\n```sh\ne\n```\n",
    );
    let found: Vec<_> = page.statements.iter().map(|statement| (statement.line, statement.text.as_str())).collect();
    assert_eq!(
        found,
        [(3, "a \\\n    b   # and"), (6, "for i in 1 2; do\n    c $i\ndone"), (9, "cat <<E\nd\nE"), (15, "e")]
    );
}
