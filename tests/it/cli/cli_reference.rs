//! Compares `docs/reference/cli.md` with the program's help texts. `NNUNET_UPDATE_DOCS=1` rewrites the page.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};
use nnunet_dist::cli::Cli;

use crate::generated;

const PAGE: &str = "docs/reference/cli.md";

#[test]
fn the_reference_matches_the_program() {
    let mut cli = Cli::command();
    cli.build();
    generated::check(PAGE, &page(&cli));
}

/// Every command and option is on the page.
#[test]
fn the_page_has_all_commands_and_options() {
    let mut cli = Cli::command();
    cli.build();
    let page = page(&cli);
    for heading in ["## nnunet-dist plan", "## nnunet-dist bench allreduce", "### Distributed training"] {
        assert!(page.lines().any(|line| line == heading), "{heading}");
    }
    let row = page.lines().find(|line| line.starts_with("| `--epochs N`")).unwrap();
    assert_eq!(row, "| `--epochs N` | Number of epochs. | 1000 |");
    assert!(!page.contains("--as-rank"), "hidden options stay hidden");
}

fn page(cli: &Command) -> String {
    let mut page = format!(
        "# Command line\n\n<!-- Generated from the program's help texts by `make docs`. -->\n\n{}\n\
         [Commands](commands.md) lists the inputs and outputs of each command.\n\n",
        "Every command with every option, as in `nnunet-dist COMMAND --help`."
    );
    let commands: Vec<&Command> = cli.get_subcommands().flat_map(leaves).collect();
    for command in &commands {
        let name = name(command);
        let _ = writeln!(page, "- [`{name}`](#{}): {}", name.replace(' ', "-"), first_line(command));
    }
    page += "\n## Options of every command\n\n";
    page += &table(cli.get_arguments().filter(|argument| argument.is_global_set()));
    commands.iter().for_each(|command| page += &section(command));
    page
}

/// A command, or its subcommands.
fn leaves(command: &Command) -> Vec<&Command> {
    if command.get_name() == "help" || command.is_hide_set() {
        return Vec::new();
    }
    match command.has_subcommands() {
        true => command.get_subcommands().flat_map(leaves).collect(),
        false => vec![command],
    }
}

fn section(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let mut text = format!("\n## {}\n\n{}\n\n```text\n{usage}\n```\n", name(command), about(command));
    let mut headings: Vec<Option<&str>> = Vec::new();
    let arguments: Vec<&Arg> = command.get_arguments().filter(|argument| is_own(argument)).collect();
    arguments.iter().map(|argument| argument.get_help_heading()).for_each(|heading| {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    });
    headings.sort_by_key(|heading| heading.is_some());
    for heading in headings {
        if let Some(heading) = heading {
            let _ = write!(text, "\n### {heading}\n");
        }
        text.push('\n');
        text += &table(arguments.iter().copied().filter(|argument| argument.get_help_heading() == heading));
    }
    text + &examples(command)
}

/// The text below the options in `--help`: examples.
fn examples(command: &Command) -> String {
    let Some(help) = command.get_after_help().map(ToString::to_string) else { return String::new() };
    let (examples, rest) = help.split_once("\n\n").unwrap_or((&help, ""));
    let lines = examples.lines().skip(1).map(|line| line.strip_prefix("  ").unwrap_or(line));
    let rest = if rest.is_empty() { String::new() } else { format!("\n{rest}\n") };
    format!("\n```sh\n{}\n```\n{rest}", lines.collect::<Vec<_>>().join("\n"))
}

fn is_own(argument: &Arg) -> bool {
    !argument.is_global_set() && !argument.is_hide_set() && !["help", "version"].contains(&argument.get_id().as_str())
}

fn table<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let rows = arguments.map(|argument| {
        let (text, default) = text_and_default(argument);
        format!("| {} | {} | {} |\n", names(argument), cell(&text), cell(&default))
    });
    let rows: String = rows.collect();
    if rows.is_empty() { rows } else { format!("| option | | default |\n|---|---|---|\n{rows}") }
}

/// `-f`, `--flag VALUE`
fn names(argument: &Arg) -> String {
    let value = match argument.get_action().takes_values() {
        true => argument.get_value_names().unwrap_or_default().join(" "),
        false => String::new(),
    };
    let with_value = |name: String| match (value.is_empty(), argument.is_require_equals_set()) {
        (true, _) => format!("`{name}`"),
        (false, true) => format!("`{name}[={value}]`"),
        (false, false) => format!("`{name} {value}`"),
    };
    match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("`-{short}`, {}", with_value(format!("--{long}"))),
        (None, Some(long)) => with_value(format!("--{long}")),
        (Some(short), None) => with_value(format!("-{short}")),
        (None, None) => format!("`{value}`"),
    }
}

/// The help with the possible values, and the default.
fn text_and_default(argument: &Arg) -> (String, String) {
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let (mut text, mut default) = match help.split_once("[default: ") {
        Some((before, after)) => {
            let (default, after) = after.rsplit_once(']').unwrap_or((after, ""));
            (format!("{}{after}", before.trim_end()), default.to_owned())
        }
        None => (help, String::new()),
    };
    let ends = text.ends_with(['.', ':', ';']);
    text += if text.is_empty() || ends { "" } else { "." };
    for choice in argument.get_possible_values().iter().filter(|_| argument.get_action().takes_values()) {
        let help = choice.get_help().map(|help| format!(": {}", help.to_string().trim_end_matches('.')));
        let _ = write!(text, " `{}`{};", choice.get_name(), help.unwrap_or_default());
    }
    if text.ends_with(';') {
        text.pop();
        text.push('.');
    }
    if default.is_empty() && !argument.is_hide_default_value_set() && argument.get_action().takes_values() {
        let values = argument.get_default_values().iter().map(|value| value.to_string_lossy());
        default = values.collect::<Vec<_>>().join(",");
    }
    if argument.is_required_set() {
        default = "(required)".to_owned();
    }
    (text, default)
}

fn name(command: &Command) -> String {
    command.get_bin_name().unwrap_or(command.get_name()).to_owned()
}

fn about(command: &Command) -> String {
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    // clap removes the full stop of a single sentence.
    if about.ends_with('.') { about } else { about + "." }
}

fn first_line(command: &Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

/// Escapes the characters with a meaning in Markdown or HTML, for use in a table cell.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', r"\|").replace('<', "&lt;").replace('*', r"\*")
}
