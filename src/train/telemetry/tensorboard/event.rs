//! Messages of an event file, as far as they are used here, and their framing.
//!
//! Source: `event.proto`, `summary.proto` and `lib/io/record_writer.h` of TensorFlow.

use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

/// Format version in the first message of every file.
pub const VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
pub const START: i32 = 1;

/// An event at a step.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    #[prost(int64, tag = "2")]
    pub step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Value>,
}

/// A value with its tag.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(string, tag = "1")]
    pub tag: String,
    #[prost(oneof = "Content", tags = "2, 4")]
    pub content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Content {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "4")]
    Image(Image),
}

#[derive(Clone, PartialEq, Message)]
pub struct Image {
    #[prost(int32, tag = "1")]
    pub height: i32,
    #[prost(int32, tag = "2")]
    pub width: i32,
    /// Color space; 3 is RGB.
    #[prost(int32, tag = "3")]
    pub colorspace: i32,
    /// PNG file.
    #[prost(bytes = "vec", tag = "4")]
    pub encoded_image_string: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SessionLog {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

impl Event {
    /// Creates an event at a step with the current time.
    pub fn now(step: u64, what: What) -> Self {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        Self { wall_time, step: i64::try_from(step).unwrap_or(i64::MAX), what: Some(what) }
    }

    /// Creates an event with scalars by tag.
    pub fn scalars(step: u64, scalars: impl IntoIterator<Item = (String, f64)>) -> Self {
        let content = |value| Some(Content::SimpleValue(value as f32));
        let value = scalars.into_iter().map(|(tag, number)| Value { tag, content: content(number) }).collect();
        Self::now(step, What::Summary(Summary { value }))
    }

    /// Creates an event with a PNG image. The size is width and height in pixels.
    pub fn image(step: u64, tag: &str, png: Vec<u8>, [width, height]: [u32; 2]) -> Self {
        let [width, height] = [width, height].map(|pixels| i32::try_from(pixels).unwrap_or(i32::MAX));
        let content = Some(Content::Image(Image { height, width, colorspace: 3, encoded_image_string: png }));
        Self::now(step, What::Summary(Summary { value: vec![Value { tag: tag.to_owned(), content }] }))
    }

    /// Returns the record as stored in the file: length, checksum of the length, message, checksum of the message.
    pub fn framed(&self) -> Vec<u8> {
        let message = self.encode_to_vec();
        let length = (message.len() as u64).to_le_bytes();
        let sums = [length.as_slice(), &message].map(|bytes| masked(crc32c::crc32c(bytes)).to_le_bytes());
        [length.as_slice(), &sums[0], &message, &sums[1]].concat()
    }
}

/// Masks a checksum by a rotation and an offset, since the data may contain checksums.
fn masked(sum: u32) -> u32 {
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_that_of_tensorflow() {
        // Bytes written by `tf.summary.create_file_writer` at the start of a file, except for the time.
        let event = Event { wall_time: 1.0, step: 0, what: Some(What::FileVersion(VERSION.into())) };
        let framed = event.framed();
        assert_eq!(framed[..8], 24_u64.to_le_bytes());
        assert_eq!(framed[8..12], [0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(framed[12..36], *b"\x09\0\0\0\0\0\0\xf0\x3f\x1a\x0dbrain.Event:2");
        assert_eq!(framed.len(), 40);
    }
}
