//! Writers of Python pickles: protocol 2 for checkpoints, protocol 0 (text) for the properties of a predicted case.

use std::fmt::Write;

use serde_json::Value;

/// Builder of a pickle in protocol 2, for plain data and PyTorch's encoding of tensors: each call appends one value.
#[derive(Debug)]
pub struct PickleWriter {
    bytes: Vec<u8>,
}

impl Default for PickleWriter {
    fn default() -> Self {
        Self { bytes: vec![0x80, 2] }
    }
}

impl PickleWriter {
    /// Returns the finished pickle.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'.');
        self.bytes
    }

    /// Appends `None`.
    pub fn none(&mut self) {
        self.bytes.push(b'N');
    }

    /// Appends a `bool`.
    pub fn bool(&mut self, value: bool) {
        self.bytes.push(if value { 0x88 } else { 0x89 });
    }

    /// Appends an `int`.
    pub fn int(&mut self, value: i64) {
        match i32::try_from(value) {
            Ok(value) => {
                self.bytes.push(b'J');
                self.bytes.extend(value.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([0x8a, 8]);
                self.bytes.extend(value.to_le_bytes());
            }
        }
    }

    /// Appends a `float`.
    pub fn float(&mut self, value: f64) {
        self.bytes.push(b'G');
        self.bytes.extend(value.to_be_bytes());
    }

    /// Appends a string.
    ///
    /// # Panics
    /// If the text has 4 GiB or more.
    pub fn text(&mut self, text: &str) {
        let len = u32::try_from(text.len()).expect("names and descriptions are short");
        self.bytes.push(b'X');
        self.bytes.extend(len.to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    /// Appends a tuple of the values that `items` appends.
    pub fn tuple(&mut self, items: impl FnOnce(&mut Self)) {
        self.bytes.push(b'(');
        items(self);
        self.bytes.push(b't');
    }

    /// Appends a tuple of integers.
    pub fn ints(&mut self, values: &[usize]) {
        // Tensor extents are far below 2^63.
        self.tuple(|pickle| values.iter().for_each(|value| pickle.int(*value as i64)));
    }

    /// Appends a list of the values that `items` appends.
    pub fn list(&mut self, items: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"](");
        items(self);
        self.bytes.push(b'e');
    }

    /// Appends a dictionary of the alternating keys and values that `entries` appends.
    pub fn dict(&mut self, entries: impl FnOnce(&mut Self)) {
        self.bytes.extend(b"}(");
        entries(self);
        self.bytes.push(b'u');
    }

    /// Appends an `OrderedDict` of the alternating keys and values that `entries` appends.
    pub fn ordered_dict(&mut self, entries: impl FnOnce(&mut Self)) {
        self.call("collections", "OrderedDict", |_| ());
        self.bytes.push(b'(');
        entries(self);
        self.bytes.push(b'u');
    }

    /// Appends a call of a function with the arguments that `arguments` appends.
    pub fn call(&mut self, module: &str, name: &str, arguments: impl FnOnce(&mut Self)) {
        self.name(module, name);
        self.tuple(arguments);
        self.bytes.push(b'R');
    }

    /// Appends a reference to a class or function.
    pub fn name(&mut self, module: &str, name: &str) {
        self.bytes.push(b'c');
        self.bytes.extend(format!("{module}\n{name}\n").bytes());
    }

    /// Appends a reference to an object outside the pickle, identified by the tuple of the values that `items` appends.
    pub fn persistent(&mut self, items: impl FnOnce(&mut Self)) {
        self.tuple(items);
        self.bytes.push(b'Q');
    }

    /// Appends a JSON value as Python's `json` would load it.
    pub fn json(&mut self, value: &Value) {
        match value {
            Value::Null => self.none(),
            Value::Bool(value) => self.bool(*value),
            Value::Number(number) => match number.as_i64() {
                Some(value) => self.int(value),
                None => self.float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => self.text(text),
            Value::Array(items) => self.list(|pickle| items.iter().for_each(|item| pickle.json(item))),
            Value::Object(map) => self.dict(|pickle| {
                for (key, value) in map {
                    pickle.text(key);
                    pickle.json(value);
                }
            }),
        }
    }
}

/// Returns a JSON value as a pickle in protocol 0, a text format. Strings must not need escaping.
pub fn to_text_pickle(value: &Value) -> Vec<u8> {
    let mut text = String::new();
    append_text(value, &mut text);
    text.push('.');
    text.into_bytes()
}

/// Appends a value in pickle protocol 0, a text format: opcode, argument, newline (Python's `pickletools.py`).
fn append_text(value: &Value, text: &mut String) {
    let result = match value {
        Value::Null => write!(text, "N"),
        Value::Bool(value) => writeln!(text, "I0{}", u8::from(*value)),
        Value::Number(number) if number.is_f64() => writeln!(text, "F{number}"),
        Value::Number(number) => writeln!(text, "I{number}"),
        // Keys of case properties contain no characters that need escaping.
        Value::String(string) => writeln!(text, "V{string}"),
        Value::Array(items) => {
            text.push_str("(l");
            items.iter().for_each(|item| {
                append_text(item, text);
                text.push('a');
            });
            Ok(())
        }
        Value::Object(fields) => {
            text.push_str("(d");
            fields.iter().for_each(|(key, value)| {
                let _ = writeln!(text, "V{key}");
                append_text(value, text);
                text.push('s');
            });
            Ok(())
        }
    };
    result.expect("a string takes any text");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Expected bytes as in `pickletools.dis`, checked with Python's `pickle.loads`.
    #[test]
    fn writes_json_values_in_protocol_0() {
        let pickle = to_text_pickle(&json!({"a": [1, -0.5], "b": {"c": true, "d": null}}));
        assert_eq!(pickle, b"(dVa\n(lI1\naF-0.5\nasVb\n(dVc\nI01\nsVd\nNss.");
    }
}
