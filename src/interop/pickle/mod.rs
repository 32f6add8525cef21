//! Parser of Python pickles, the format of PyTorch's checkpoints and of the properties of nnU-Net's preprocessed cases.
//!
//! A pickle is a program for a stack machine that may call any function of any module. This parser builds a tree of
//! plain data and only records calls: [`Value::object`] returns name and arguments of a call, from which the supported
//! ones (tensors, NumPy arrays and scalars) are decoded. Nothing in a file is ever executed.

mod reader;
mod value;

pub use reader::parse;
pub use value::{Array, Pickle, Value};

#[cfg(test)]
mod tests {
    use nnunet_core::pickle::PickleWriter;

    use super::parse;

    #[test]
    fn parses_what_the_writer_writes() {
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
