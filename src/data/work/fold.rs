//! The name of a cross-validation fold.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The held-out cases: those of one fold of `splits_final.json`, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FoldId {
    /// Trains and validates on every case.
    All,
    /// Holds out the validation cases of this fold.
    Number(usize),
}

impl fmt::Display for FoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl FromStr for FoldId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => {
                text.parse().map(Self::Number).map_err(|_| format!("a fold is `all` or a number from 0, not `{text}`"))
            }
        }
    }
}

impl TryFrom<String> for FoldId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FoldId> for String {
    fn from(fold: FoldId) -> Self {
        fold.to_string()
    }
}
