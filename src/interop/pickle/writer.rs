//! Writer of pickles in protocol 2, for plain data and PyTorch's encoding of tensors.

/// Pickle builder: each call appends one value.
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

    pub fn none(&mut self) {
        self.bytes.push(b'N');
    }

    pub fn bool(&mut self, value: bool) {
        self.bytes.push(if value { 0x88 } else { 0x89 });
    }

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
    pub fn json(&mut self, value: &serde_json::Value) {
        use serde_json::Value;
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

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let value = serde_json::json!({"a": [1, -2, 1u64 << 40, 0.5, null, true, [], {}], "ü": {"b": "c"}});
        let mut pickle = PickleWriter::default();
        pickle.ordered_dict(|pickle| {
            pickle.text("json");
            pickle.json(&value);
            pickle.text("axes");
            pickle.ints(&[0, 1, 2]);
            pickle.text("call");
            pickle.call("a.b", "c", |pickle| pickle.persistent(|pickle| pickle.text("storage")));
        });
        let read = parse(&pickle.finish()).unwrap();
        let root = read.root();
        assert_eq!(root.get("json").unwrap().to_json().unwrap(), value);
        assert_eq!(root.get("axes").unwrap().indices(), Some(vec![0, 1, 2]));
        let call = root.get("call").unwrap().object().unwrap();
        assert_eq!(call.name, "a.b.c");
        let [argument] = call.arguments.first().unwrap();
        assert_eq!(argument.persistent().unwrap().first::<1>().unwrap()[0].text(), Some("storage"));
    }
}
