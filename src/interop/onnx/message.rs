//! Encoder for the subset of protocol buffers used by ONNX (protobuf.dev, "Encoding").

/// Message builder: fields are appended in call order.
#[derive(Clone, Debug, Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

/// Wire type of a field.
#[derive(Clone, Copy)]
enum WireType {
    Varint = 0,
    LengthDelimited = 2,
    Fixed32 = 5,
}

impl Message {
    /// Appends a non-negative integer.
    pub(super) fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.key(field, WireType::Varint);
        self.varint(value);
        self
    }

    pub(super) fn float(&mut self, field: u64, value: f32) -> &mut Self {
        self.key(field, WireType::Fixed32);
        self.bytes.extend(value.to_le_bytes());
        self
    }

    pub(super) fn text(&mut self, field: u64, text: &str) -> &mut Self {
        self.length_delimited(field, text.as_bytes())
    }

    pub(super) fn message(&mut self, field: u64, message: &Message) -> &mut Self {
        self.length_delimited(field, &message.bytes)
    }

    pub(super) fn length_delimited(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.key(field, WireType::LengthDelimited);
        self.varint(bytes.len() as u64);
        self.bytes.extend(bytes);
        self
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn key(&mut self, field: u64, wire: WireType) {
        self.varint(field << 3 | wire as u64);
    }

    /// Appends a varint: seven bits per byte, lowest first; the high bit is set in all bytes but the last.
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Examples from protobuf.dev's page on encoding.
    #[test]
    fn fields_are_encoded_as_the_specification_shows() {
        assert_eq!(Message::default().number(1, 150).as_bytes(), [0x08, 0x96, 0x01]);
        assert_eq!(Message::default().text(2, "testing").as_bytes(), b"\x12\x07testing");
        let inner = Message::default().number(1, 150).clone();
        assert_eq!(Message::default().message(3, &inner).as_bytes(), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        assert_eq!(Message::default().float(2, 1.0).as_bytes(), [0x15, 0, 0, 0x80, 0x3f]);
    }
}
