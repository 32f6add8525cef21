//! The defaults in help texts and in `docs/reference/config.md` are those of the code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use nnunet_dist::cli::Cli;
use nnunet_dist::config::{Layer, RunConfig};
use toml::Value;

const PAGE: &str = "docs/reference/config.md";
/// Keys without a default of their own: required ones, and those whose default is in the plans or follows from others.
const DERIVED: [&str; 5] = ["configuration", "fold", "run_dir", "training.batch_size", "loss.batch_dice"];

/// A row of the page: flags and default.
struct Row {
    flags: Vec<String>,
    default: String,
}

#[test]
fn the_page_lists_every_key_with_its_default() {
    let (defaults, rows) = (defaults(), rows());
    assert_eq!(rows.keys().collect::<Vec<_>>(), defaults.keys().collect::<Vec<_>>());
    for (key, value) in defaults.iter().filter(|(key, _)| !DERIVED.contains(&key.as_str())) {
        let documented = rows[key].default.replace('`', "");
        assert!(states(&documented, value), "{PAGE}: {key}: {documented}, but the default is {value}");
    }
}

#[test]
fn help_texts_state_the_defaults_of_the_keys() {
    let (defaults, cli) = (defaults(), Cli::command());
    let train = cli.find_subcommand("train").unwrap();
    let mut compared = 0;
    for (key, Row { flags, .. }) in rows() {
        for flag in flags.iter().filter(|_| !DERIVED.contains(&key.as_str())) {
            let argument = train.get_arguments().find(|argument| argument.get_long() == flag.strip_prefix("--"));
            let Some(argument) = argument else { panic!("{PAGE}: {key}: `train` has no {flag}") };
            let help = argument.get_long_help().or(argument.get_help()).unwrap().to_string();
            match help.split_once("[default: ") {
                Some((_, stated)) => {
                    assert!(states(stated, &defaults[&key]), "{flag}: {stated}, but the default is {}", defaults[&key]);
                    compared += 1;
                }
                None => assert!(!argument.get_action().takes_values(), "{flag} does not state its default"),
            }
        }
    }
    assert!(compared >= 20, "{compared} flags");
}

/// Returns the defaults of all keys, with dotted names.
fn defaults() -> BTreeMap<String, Value> {
    let config = RunConfig::resolve(Layer::new("plans"), None, Layer::new("flags")).unwrap();
    let table: toml::Table = config.to_toml().parse().unwrap();
    let keys = table.into_iter().flat_map(|(section, value)| match value {
        Value::Table(keys) => keys.into_iter().map(|(key, value)| (format!("{section}.{key}"), value)).collect(),
        value => vec![(section, value)],
    });
    keys.collect()
}

fn rows() -> BTreeMap<String, Row> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE)).unwrap();
    let rows = page.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, key, flags, default, ..] = cells[..] else { return None };
        let key = key.strip_prefix('`')?.strip_suffix('`')?;
        let flags = flags.split([',', ' ']).map(|flag| flag.trim_matches('`').to_owned());
        let flags = flags.filter(|flag| flag.starts_with("--") && flag != "--amp").collect();
        Some((key.to_owned(), Row { flags, default: default.to_owned() }))
    });
    rows.collect()
}

/// Returns whether a text begins with a value; conditions for other values may follow.
fn states(text: &str, value: &Value) -> bool {
    let first = text.split([' ', ';', ',', ']']).find(|word| !word.is_empty()).unwrap_or_default();
    let unquoted = first.trim_matches('"');
    match value {
        Value::String(string) if string.is_empty() => unquoted == "none",
        Value::String(string) => unquoted == string,
        Value::Array(list) if list.is_empty() => ["[", "[]", "all"].contains(&first),
        other => {
            let number = other.as_float().or(other.as_integer().map(|integer| integer as f64));
            number.map_or(unquoted == other.to_string(), |number| unquoted.parse() == Ok(number))
        }
    }
}
