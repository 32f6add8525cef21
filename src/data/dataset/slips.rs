//! The most frequent slips in a dataset.json, each answered with the right form.

use serde_json::{Map, Value};

/// Describes the first slip in a description in nnU-Net v2's schema. Missing keys and unknown types are left to the
/// deserializer.
pub(super) fn find_slip(fields: &Map<String, Value>) -> Option<String> {
    let slip = |key: &str, find: fn(&Value) -> Option<String>| fields.get(key).and_then(find);
    slip("channel_names", channel_names)
        .or_else(|| slip("labels", label_problem))
        .or_else(|| slip("numTraining", num_training))
        .or_else(|| slip("file_ending", file_ending))
        .or_else(|| slip("regions_class_order", regions_class_order))
}

fn channel_names(value: &Value) -> Option<String> {
    match value {
        Value::Array(names) => {
            let pairs = names.iter().enumerate().map(|(channel, name)| format!("\"{channel}\": {}", as_text(name)));
            Some(format!("channel_names is a list; write {{{}}}", pairs.collect::<Vec<_>>().join(", ")))
        }
        Value::Object(names) if is_reversed(names) => {
            let pairs = names.iter().map(|(name, channel)| {
                let channel = channel.as_str().map_or_else(|| channel.to_string(), str::to_owned);
                format!("\"{channel}\": \"{name}\"")
            });
            let pairs = pairs.collect::<Vec<_>>().join(", ");
            Some(format!("channel_names is the wrong way round, names first; write {{{pairs}}}"))
        }
        Value::Object(names) => {
            let (channel, name) = names.iter().find(|(_, name)| !name.is_string())?;
            Some(format!("channel_names: channel {channel:?} is {name}; write a name in quotes, such as \"CT\""))
        }
        other => Some(format!("channel_names is {other}; write {{\"0\": {}}}", as_text(other))),
    }
}

/// Whether the names of channels are the keys, and their numbers the values.
fn is_reversed(names: &Map<String, Value>) -> bool {
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    let has_number = |value: &Value| value.is_u64() || value.as_str().is_some_and(is_number);
    !names.is_empty() && names.iter().all(|(name, channel)| !is_number(name) && has_number(channel))
}

/// Describes the first slip in `labels`: the wrong way round, a list, or a value that is no label.
pub fn label_problem(labels: &Value) -> Option<String> {
    let Value::Object(labels) = labels else {
        let right = match labels {
            Value::Array(names) => numbered(names.iter().filter(|name| *name != "background").map(as_text)),
            _ => numbered(["\"organ\"".to_owned()].into_iter()),
        };
        return Some(format!("labels is {}; write {right}", kind(labels)));
    };
    let is_number = |text: &str| text.parse::<i64>().is_ok();
    if !labels.is_empty() && labels.iter().all(|(number, name)| is_number(number) && name.is_string()) {
        let pairs = labels.iter().map(|(number, name)| format!("{}: {number}", as_text(name)));
        let pairs = pairs.collect::<Vec<_>>().join(", ");
        return Some(format!("labels is the wrong way round, numbers first; write {{{pairs}}}"));
    }
    labels.iter().find_map(|(name, value)| {
        let members = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let defect = members.iter().find_map(not_a_label)?;
        Some(format!("labels: {name:?} {defect}"))
    })
}

/// Describes why a value is no label.
fn not_a_label(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => match number.as_i64() {
            Some(label) if i16::try_from(label).is_ok() => None,
            None if number.as_f64().is_some_and(|label| label.fract() == 0.0 && label.abs() < 32768.0) => {
                Some(format!("is {number}; write {} without a fraction", number.as_f64().unwrap_or_default()))
            }
            None if number.is_f64() => Some(format!("is {number}; labels are integers")),
            _ => Some(format!("is {number}; labels go from {} to {}", i16::MIN, i16::MAX)),
        },
        Value::String(text) if text.trim().parse::<i64>().is_ok() => {
            Some(format!("is {value}, text; write {} without quotes", text.trim()))
        }
        other => Some(format!("is {other}; write a number, or a list of numbers for a region")),
    }
}

fn num_training(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) if number.is_u64() => None,
        Value::String(text) if text.trim().parse::<u64>().is_ok() => {
            Some(format!("numTraining is {value}, text; write {} without quotes", text.trim()))
        }
        other => Some(format!("numTraining is {other}; write the number of training cases, such as 20")),
    }
}

fn file_ending(value: &Value) -> Option<String> {
    match value.as_str() {
        None => Some(format!("file_ending is {value}; write the ending of the images in quotes, such as \".nii.gz\"")),
        Some(text) if text.trim() != text || text.is_empty() => {
            Some(format!("file_ending is {value}; write the ending of the images, such as \".nii.gz\""))
        }
        Some(text) if !text.starts_with('.') => {
            Some(format!("file_ending is {value}; it begins with a dot: \".{}\"", text.trim_start_matches(['*', '.'])))
        }
        Some(_) => None,
    }
}

fn regions_class_order(value: &Value) -> Option<String> {
    let defect = match value {
        Value::Null => None,
        Value::Array(labels) => labels.iter().find_map(not_a_label),
        other => Some(format!("is {other}; write a list with one label per region, such as [1, 2, 3]")),
    };
    defect.map(|defect| format!("regions_class_order {defect}"))
}

/// The value as JSON text: in quotes.
fn as_text(value: &Value) -> String {
    match value {
        Value::String(_) => value.to_string(),
        other => format!("\"{other}\""),
    }
}

/// `labels` with these names, in quotes, in the right form.
fn numbered(names: impl Iterator<Item = String>) -> String {
    let pairs = names.zip(1..).map(|(name, label)| format!(", {name}: {label}")).collect::<String>();
    format!("{{\"background\": 0{pairs}}}")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "a list",
        Value::String(_) => "text",
        Value::Number(_) => "a number",
        _ => "not an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slip(replaced: &str, by: &str) -> String {
        let good = r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "edge": [1, 2]},
            "numTraining": 5, "file_ending": ".nii.gz", "regions_class_order": [1, 2]}"#;
        assert!(good.contains(replaced));
        let fields = serde_json::from_str(&good.replace(replaced, by)).unwrap();
        find_slip(&fields).unwrap_or_default()
    }

    #[test]
    fn every_slip_shows_the_right_form() {
        assert_eq!(slip("", ""), "");
        let labels = r#"{"background": 0, "liver": 1, "edge": [1, 2]}"#;
        for (replaced, by, expected) in [
            (r#"{"0": "CT"}"#, r#"["CT", "PET"]"#, r#"channel_names is a list; write {"0": "CT", "1": "PET"}"#),
            (r#"{"0": "CT"}"#, r#""CT""#, r#"write {"0": "CT"}"#),
            (r#""CT""#, "7", r#"channel "0" is 7"#),
            (r#"{"0": "CT"}"#, r#"{"CT": 0}"#, r#"the wrong way round, names first; write {"0": "CT"}"#),
            (r#"{"0": "CT"}"#, r#"{"CT": "0", "PET": "1"}"#, r#"write {"0": "CT", "1": "PET"}"#),
            (
                labels,
                r#"{"0": "background", "1": "liver"}"#,
                r#"labels is the wrong way round, numbers first; write {"background": 0, "liver": 1}"#,
            ),
            (labels, r#"["background", "liver"]"#, r#"labels is a list; write {"background": 0, "liver": 1}"#),
            (r#""liver": 1"#, r#""liver": "1""#, r#"labels: "liver" is "1", text; write 1 without quotes"#),
            (r#""liver": 1"#, r#""liver": 1.0"#, "write 1 without a fraction"),
            (r#""liver": 1"#, r#""liver": 1.5"#, "labels are integers"),
            (r#""liver": 1"#, r#""liver": 40000"#, "is 40000; labels go from -32768 to 32767"),
            (r#""edge": [1, 2]"#, r#""edge": [1, [2]]"#, "is [2]; write a number"),
            ("5,", r#""5","#, r#"numTraining is "5", text; write 5 without quotes"#),
            ("5,", "-5,", "numTraining is -5"),
            (r#"".nii.gz""#, r#""nii.gz""#, r#"file_ending is "nii.gz"; it begins with a dot: ".nii.gz""#),
            (r#"".nii.gz""#, r#""*.nii.gz""#, r#"it begins with a dot: ".nii.gz""#),
            (r#"".nii.gz""#, r#""""#, "file_ending is"),
        ] {
            let found = slip(replaced, by);
            assert!(found.contains(expected), "{by}: {found}");
        }
        assert!(slip("\"regions_class_order\": [1, 2]", "\"regions_class_order\": 3").contains("one label per region"));
    }
}
