//! Former names of keys, which files may still have.

use std::collections::BTreeSet;
use std::sync::Mutex;

use toml::{Table, Value};

/// Section, former key and present key.
const RENAMED: [[&str; 3]; 6] = [
    ["training", "accumulate", "gradient_accumulation_steps"],
    ["data", "stage_dir", "local_cache_dir"],
    ["optimizer", "clip", "max_grad_norm"],
    ["schedule", "end_lr", "min_lr"],
    ["schedule", "first_cycle_steps", "t_0"],
    ["dist", "compare_every", "weight_check_interval"],
];

/// Renames the former keys in `table` and returns the pairs (former, present) of dotted names that it found.
///
/// # Errors
/// Returns an error if a section has both names of a key.
fn rename(table: &mut Table) -> Result<Vec<(String, String)>, String> {
    let mut found = Vec::new();
    for [section, former, present] in RENAMED {
        let Some(Value::Table(keys)) = table.get_mut(section) else { continue };
        let Some(value) = keys.remove(former) else { continue };
        let names = (format!("{section}.{former}"), format!("{section}.{present}"));
        if keys.insert(present.to_owned(), value).is_some() {
            return Err(format!("`{}` is the former name of `{}`; remove one of them", names.0, names.1));
        }
        found.push(names);
    }
    Ok(found)
}

/// Renames the former keys in `table`, with one warning per key and process.
///
/// # Errors
/// Returns an error if a section has both names of a key.
pub(super) fn update(table: &mut Table) -> Result<(), String> {
    static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    for (former, present) in rename(table)? {
        if WARNED.lock().is_ok_and(|mut warned| warned.insert(former.clone())) {
            tracing::warn!("the configuration key `{former}` is now called `{present}`");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_keys_take_their_present_names() {
        let mut table: Table = "[optimizer]\nclip = 3.0\n[training]\naccumulate = 4\nepochs = 2\n".parse().unwrap();
        let expected = "[optimizer]\nmax_grad_norm = 3.0\n[training]\ngradient_accumulation_steps = 4\nepochs = 2\n";
        assert_eq!(rename(&mut table).unwrap().len(), 2);
        assert_eq!(table, expected.parse().unwrap());
    }

    #[test]
    fn both_names_of_a_key_are_refused() {
        let mut table: Table = "[optimizer]\nclip = 3.0\nmax_grad_norm = 3.0\n".parse().unwrap();
        assert!(rename(&mut table).unwrap_err().contains("`optimizer.clip` is the former name of"));
    }
}
