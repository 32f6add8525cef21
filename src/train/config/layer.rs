//! Configuration layers, which override each other.

use std::path::Path;

use toml::{Table, Value};

use super::renamed;

use nnunet_core::user_file::read_text;
use nnunet_data::work::{ConfigError, one_line};

/// A partial configuration: the keys set by one source (plans, file, flags), and the name of the source.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    origin: String,
    table: Table,
}

impl Layer {
    /// An empty layer; `origin` names it in errors.
    pub fn new(origin: impl Into<String>) -> Self {
        Self { origin: origin.into(), table: Table::new() }
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// Returns an error, with the line number, if the file cannot be read or is not TOML.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let origin = path.display().to_string();
        let text = read_text(path).map_err(|error| ConfigError::new(&origin, error))?;
        let table = text.parse::<Table>().map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            ConfigError::new(format!("{origin}:{line}"), one_line(error.message()))
        })?;
        let mut layer = Self { origin, table };
        renamed::update(&mut layer.table).map_err(|defect| ConfigError::new(&layer.origin, defect))?;
        Ok(layer)
    }

    /// Sets `section.key` (or a top-level `key`). `None` leaves the value of lower layers unchanged.
    pub fn set(&mut self, key: &str, value: Option<impl Into<Value>>) -> &mut Self {
        if let Some(value) = value {
            match key.split_once('.') {
                None => self.table.insert(key.to_owned(), value.into()),
                Some((section, key)) => {
                    let section = self.table.entry(section).or_insert_with(|| Value::Table(Table::new()));
                    section.as_table_mut().and_then(|section| section.insert(key.to_owned(), value.into()))
                }
            };
        }
        self
    }

    /// Returns the value of `section.key` (or a top-level `key`), if set.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match key.split_once('.') {
            None => self.table.get(key),
            Some((section, key)) => self.table.get(section)?.get(key),
        }
    }

    /// Returns the name of this layer in errors.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Writes this layer's values over `base`, which must contain all valid keys.
    ///
    /// # Errors
    /// Returns an error for a key that `base` lacks, or a value of a different type than in `base`.
    pub(super) fn apply_to(&self, base: &mut Table) -> Result<(), ConfigError> {
        merge(base, &self.table, "").map_err(|defect| ConfigError::new(&self.origin, defect))
    }
}

fn merge(base: &mut Table, over: &Table, prefix: &str) -> Result<(), String> {
    for (key, value) in over {
        let name = format!("{prefix}{key}");
        if !base.contains_key(key) {
            let known: Vec<_> = base.keys().map(String::as_str).collect();
            return Err(format!("unknown key `{name}`; valid keys are {}", known.join(", ")));
        }
        match (&mut base[key], value) {
            (Value::Table(base), Value::Table(over)) => merge(base, over, &format!("{name}."))?,
            (base @ Value::Float(_), Value::Integer(number)) => *base = Value::Float(*number as f64),
            // A fold is "all" or a number.
            (base @ Value::String(_), Value::Integer(number)) if name == "fold" => {
                *base = Value::String(number.to_string());
            }
            (base, value) if base.same_type(value) => *base = value.clone(),
            (base, value) => {
                return Err(format!("`{name}` must be of type {}, not {}", base.type_str(), value.type_str()));
            }
        }
    }
    Ok(())
}
