//! Stack machine of `pickle` (protocols 2 to 5; Python's `pickletools.py` describes each operation).

use std::collections::HashMap;

use super::value::{Node, NodeId, Pickle};

/// Limit on the number of values; the largest known checkpoint has half a million. A value takes up to fifty times the
/// memory of the byte that creates it, so the number of values is limited, not the number of bytes.
const MAX_VALUES: usize = 8 << 20;

/// Parses a pickle. Calls are recorded as [`super::value::Object`]s and never executed.
///
/// # Errors
/// Returns an error with the byte offset if the pickle is truncated or inconsistent, or has an operation that neither
/// Python's `pickle` in these protocols nor PyTorch writes.
pub fn parse(bytes: &[u8]) -> Result<Pickle, String> {
    let mut machine =
        Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    match machine.run() {
        Ok(root) => Ok(Pickle { nodes: machine.nodes, root }),
        Err(defect) => Err(format!("damaged pickle, byte {}: {defect}", machine.at)),
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<NodeId>,
    /// Stack heights at the marks.
    marks: Vec<usize>,
    memo: HashMap<u32, NodeId>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<NodeId, String> {
        loop {
            if self.nodes.len().max(self.stack.len()).max(self.memo.len()).max(self.marks.len()) > MAX_VALUES {
                return Err("too many values for a checkpoint".into());
            }
            let [operation] = self.array()?;
            match operation {
                b'.' => return self.pop(),
                0x80 => self.protocol()?,
                0x95 => _ = self.take(8)?,

                b'N' => self.push(Node::None),
                0x88 => self.push(Node::Bool(true)),
                0x89 => self.push(Node::Bool(false)),
                b'J' => self.number(4)?,
                b'K' => self.number(1)?,
                b'M' => self.number(2)?,
                0x8a => self.long(1)?,
                0x8b => self.long(4)?,
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Node::Float(value));
                }
                0x8c => self.text(1)?,
                b'X' => self.text(4)?,
                0x8d => self.text(8)?,
                b'U' | b'C' => self.blob(1)?,
                b'T' | b'B' => self.blob(4)?,
                0x8e | 0x96 => self.blob(8)?,

                b'(' => self.marks.push(self.stack.len()),
                b'0' => _ = self.pop()?,
                b'1' => _ = self.pop_mark()?,
                b'2' => self.duplicate()?,
                b')' => self.push(Node::Tuple(Vec::new())),
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Tuple(items));
                }
                b']' | 0x8f => self.push(Node::List(Vec::new())),
                b'l' | 0x91 => {
                    let items = self.pop_mark()?;
                    self.push(Node::List(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                b'}' => self.push(Node::Dict(Vec::new())),
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Node::Dict(Vec::new()));
                    self.set_items(&items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set_items(&items)?;
                }

                b'q' => self.memoize(1)?,
                b'r' => self.memoize(4)?,
                0x94 => {
                    let (key, top) = (self.memo.len() as u32, self.top()?);
                    self.memo.insert(key, top);
                }
                b'h' => self.recall(1)?,
                b'j' => self.recall(4)?,

                b'c' => {
                    let name = format!("{}.{}", self.line()?, self.line()?);
                    self.push(Node::Name(name));
                }
                0x93 => self.stack_global()?,
                b'R' | 0x81 => self.call()?,
                0x92 => {
                    _ = self.pop()?;
                    self.call()?;
                }
                b'b' => self.build()?,
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Persistent(id));
                }
                other => return Err(format!("unsupported operation {other:#04x}")),
            }
        }
    }

    fn protocol(&mut self) -> Result<(), String> {
        match self.array()? {
            [2..=5] => Ok(()),
            [other] => Err(format!("protocol {other} is not supported; supported are 2 to 5")),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..len).ok_or_else(|| format!("{len} bytes expected, {} left", rest.len()))?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("as many as were taken"))
    }

    /// Reads a little-endian integer of `width` bytes.
    fn unsigned(&mut self, width: usize) -> Result<u64, String> {
        let mut word = [0; 8];
        word[..width].copy_from_slice(self.take(width)?);
        Ok(u64::from_le_bytes(word))
    }

    /// Reads the bytes that follow a length of `width` bytes.
    fn length_prefixed(&mut self, width: usize) -> Result<&'a [u8], String> {
        let len = self.unsigned(width)?;
        self.take(usize::try_from(len).map_err(|_| format!("{len} bytes expected"))?)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let len = self.bytes[self.at..].iter().position(|byte| *byte == b'\n').ok_or("an unterminated name")?;
        let line = self.take(len + 1)?;
        std::str::from_utf8(&line[..len]).map_err(|_| "a name that is not text".into())
    }

    fn number(&mut self, width: usize) -> Result<(), String> {
        let value = self.unsigned(width)?;
        // Only the widest type is signed.
        self.push(Node::Int(if width == 4 { i64::from(value as u32 as i32) } else { value as i64 }));
        Ok(())
    }

    fn long(&mut self, width: usize) -> Result<(), String> {
        let bytes = self.length_prefixed(width)?;
        if bytes.len() > 8 {
            return Err(format!("an integer of {} bytes, over the limit of 8", bytes.len()));
        }
        let sign = if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 };
        let mut word = [sign; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(word)));
        Ok(())
    }

    fn text(&mut self, width: usize) -> Result<(), String> {
        let bytes = self.length_prefixed(width)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a string that is not UTF-8")?;
        self.push(Node::Text(text.to_owned()));
        Ok(())
    }

    fn blob(&mut self, width: usize) -> Result<(), String> {
        let bytes = self.length_prefixed(width)?;
        self.push(Node::Bytes(bytes.to_vec()));
        Ok(())
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len() as NodeId);
        self.nodes.push(node);
    }

    /// Returns the stack height at the last mark; operations must not reach below it.
    fn mark_height(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<NodeId, String> {
        if self.stack.len() <= self.mark_height() {
            return Err("the stack is empty".into());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    fn top(&self) -> Result<NodeId, String> {
        self.stack[self.mark_height()..].last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop_mark(&mut self) -> Result<Vec<NodeId>, String> {
        let mark = self.marks.pop().ok_or("the end of a list without its mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn duplicate(&mut self) -> Result<(), String> {
        let top = self.top()?;
        self.stack.push(top);
        Ok(())
    }

    fn tuple(&mut self, len: usize) -> Result<(), String> {
        let mut items = (0..len).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<NodeId>) -> Result<(), String> {
        let top = self.top()?;
        match &mut self.nodes[top as usize] {
            Node::List(list) => list.extend(items),
            // Items of unknown objects are ignored.
            Node::Object { .. } => {}
            _ => return Err("items appended to a value that is not a list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[NodeId]) -> Result<(), String> {
        let top = self.top()?;
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a key without a value".into()) };
        match &mut self.nodes[top as usize] {
            Node::Dict(entries) => entries.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            Node::Object { .. } => {}
            _ => return Err("entries added to a value that is not a dictionary".into()),
        }
        Ok(())
    }

    fn memoize(&mut self, width: usize) -> Result<(), String> {
        let (key, top) = (self.unsigned(width)? as u32, self.top()?);
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Result<(), String> {
        let key = self.unsigned(width)? as u32;
        let id = self.memo.get(&key).ok_or_else(|| format!("value {key} is used before its definition"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn stack_global(&mut self) -> Result<(), String> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (&self.nodes[module as usize], &self.nodes[name as usize]) {
            (Node::Text(module), Node::Text(name)) => {
                let name = format!("{module}.{name}");
                self.push(Node::Name(name));
                Ok(())
            }
            _ => Err("a name that is not text".into()),
        }
    }

    /// Records a call; calls that only construct plain data are replaced by the data.
    fn call(&mut self) -> Result<(), String> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let Node::Tuple(items) = &self.nodes[arguments as usize] else {
            return Err("a call without a tuple of arguments".into());
        };
        let name = match &self.nodes[function as usize] {
            Node::Name(name) => name.as_str(),
            _ => "an unnamed function",
        };
        let node = match name {
            "collections.OrderedDict" | "collections.defaultdict" => Node::Dict(Vec::new()),
            // Encoding of bytes in protocol 2.
            "_codecs.encode" => self.encoded(items)?,
            name => Node::Object { name: name.to_owned(), arguments, state: None },
        };
        self.push(node);
        Ok(())
    }

    fn encoded(&self, arguments: &[NodeId]) -> Result<Node, String> {
        let Some(Node::Text(text)) = arguments.first().map(|id| &self.nodes[*id as usize]) else {
            return Err("bytes that are not encoded as text".into());
        };
        let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
        bytes.map(Node::Bytes).map_err(|_| "a byte value above 255".into())
    }

    fn build(&mut self) -> Result<(), String> {
        let (given, top) = (self.pop()?, self.top()?);
        if let Node::Object { state, .. } = &mut self.nodes[top as usize] {
            *state = Some(given);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `pickle.dumps({"a": [1, -2, 300, 70000, 1 << 40, 0.5, True, None, (1,)], "b": b"\xff"}, protocol)`.
    const PROTOCOL_2: &[u8] = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\x00\
        \x8a\x06\x00\x00\x00\x00\x00\x01G?\xe0\x00\x00\x00\x00\x00\x00\x88NK\x01\x85q\x03eX\x01\x00\x00\x00bq\x04c_codecs\n\
        encode\nq\x05X\x02\x00\x00\x00\xc3\xbfq\x06X\x06\x00\x00\x00latin1q\x07\x86q\x08Rq\tu.";
    const PROTOCOL_4: &[u8] = b"\x80\x04\x95;\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01a\x94]\x94(K\x01J\xfe\xff\xff\xffM,\x01J\
        p\x11\x01\x00\x8a\x06\x00\x00\x00\x00\x00\x01G?\xe0\x00\x00\x00\x00\x00\x00\x88NK\x01\x85\x94e\x8c\x01b\x94C\x01\xff\
        \x94u.";

    #[test]
    fn plain_values_come_out_as_they_went_in() {
        for bytes in [PROTOCOL_2, PROTOCOL_4] {
            let pickle = parse(bytes).unwrap();
            let list = pickle.root().get("a").unwrap().to_json().unwrap();
            assert_eq!(list, serde_json::json!([1, -2, 300, 70000, 1u64 << 40, 0.5, true, null, [1]]));
            assert_eq!(pickle.root().get("b").unwrap().bytes(), Some(&[0xff][..]));
        }
    }

    #[test]
    fn every_cut_is_an_error_and_no_panic() {
        for bytes in [PROTOCOL_2, PROTOCOL_4] {
            for len in 0..bytes.len() {
                assert!(parse(&bytes[..len]).is_err(), "{len}");
            }
        }
    }

    #[test]
    fn any_changed_byte_is_an_error_or_another_value_and_no_panic() {
        for at in 0..PROTOCOL_2.len() {
            for value in 0..=255 {
                let mut bytes = PROTOCOL_2.to_vec();
                bytes[at] = value;
                if let Ok(pickle) = parse(&bytes) {
                    let _ = pickle.root().to_json();
                }
            }
        }
    }

    /// Bytes of `pickle.dumps` for an object whose `__reduce__` is `(os.system, ("touch /tmp/owned",))`.
    #[test]
    fn a_call_is_written_down_and_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owned");
        let command = format!("touch {}", path.display());
        let mut bytes = b"\x80\x02cos\nsystem\nX".to_vec();
        bytes.extend((command.len() as u32).to_le_bytes());
        bytes.extend(command.as_bytes());
        bytes.extend(b"\x85R.");
        let pickle = parse(&bytes).unwrap();
        assert_eq!(pickle.root().object().unwrap().name, "os.system");
        assert!(pickle.root().to_json().unwrap_err().contains("os.system"));
        assert!(!path.exists());
    }

    #[test]
    fn hostile_operations_are_errors() {
        for (bytes, defect) in [
            (&b"\x80\x02\x82\x01."[..], "operation 0x82"),
            (b"\x80\x02(S'ls'\nios\nsystem\n.", "operation 0x53"),
            (b"\x80\x07N.", "protocol 7"),
            (b"\x80\x02B\xff\xff\xff\xff", "4294967295 bytes expected"),
            (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff", "bytes expected"),
            (b"\x80\x02\x8b\xff\xff\xff\x7f", "bytes expected"),
            (b"\x80\x02N(0.", "stack is empty"),
            (b"\x80\x02h\x05.", "value 5"),
            (b"\x80\x02Nb.", "stack is empty"),
            (b"\x80\x02}(Nu.", "key without a value"),
            (b"\x80\x02Nt.", "without its mark"),
        ] {
            let error = parse(bytes).unwrap_err();
            assert!(error.contains(defect), "{error}");
        }
    }

    /// A list of two references to a list of two references to ... stands for 2^40 values.
    #[test]
    fn values_that_are_named_again_and_again_do_not_fill_memory() {
        let mut bytes = b"\x80\x02]q\x00".to_vec();
        for level in 1..25u8 {
            bytes.extend([b']', b'q', level, b'(', b'h', level - 1, b'h', level - 1, b'e']);
        }
        bytes.push(b'.');
        let error = parse(&bytes).unwrap().root().to_json().unwrap_err();
        assert!(error.contains("larger or deeper"), "{error}");
        // A list that contains itself.
        let error = parse(b"\x80\x02]q\x00h\x00a.").unwrap().root().to_json().unwrap_err();
        assert!(error.contains("larger or deeper"), "{error}");
    }
}
