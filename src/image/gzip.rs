//! Decompression of gzip files with several members and padding.

use std::io::{self, BufRead, Read, Write};

use flate2::bufread::GzDecoder;
use flate2::write;

/// Reader of gzip members, one after the other. Zero bytes after a member are padding, as tapes and object stores add
/// it; like GNU gzip, the reader skips them.
pub struct GzipMembers<R: BufRead> {
    /// `None` after the last member.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> GzipMembers<R> {
    /// Starts with the first member.
    pub fn new(file: R) -> Self {
        Self { member: Some(GzDecoder::new(file)) }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let Some(mut file) = self.member.take().map(GzDecoder::into_inner) else { break };
            self.member = skip_zeros(&mut file)?.then(|| GzDecoder::new(file));
        }
        Ok(0)
    }
}

/// Writer of gzip members that passes their contents on; skips padding as [`GzipMembers`] does.
pub struct GzipWriter<W: Write>(State<W>);

enum State<W: Write> {
    Member(Box<write::GzDecoder<W>>),
    /// Between two members.
    Padding(W),
    /// After an error.
    Failed,
}

impl<W: Write> GzipWriter<W> {
    /// Starts with the first member.
    pub fn new(file: W) -> Self {
        Self(State::Member(Box::new(write::GzDecoder::new(file))))
    }

    /// Ends the last member.
    ///
    /// # Errors
    /// Returns an error if the member is not complete, or the writer has failed before.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            State::Member(member) => member.finish(),
            State::Padding(file) => Ok(file),
            State::Failed => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        loop {
            self.0 = match std::mem::replace(&mut self.0, State::Failed) {
                State::Member(mut member) => match member.write(bytes)? {
                    0 => State::Padding(member.finish()?),
                    written => {
                        self.0 = State::Member(member);
                        return Ok(written);
                    }
                },
                State::Padding(file) => match bytes.iter().take_while(|byte| **byte == 0).count() {
                    0 => State::Member(Box::new(write::GzDecoder::new(file))),
                    zeros => {
                        self.0 = State::Padding(file);
                        return Ok(zeros);
                    }
                },
                State::Failed => return Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            State::Member(member) => member.flush(),
            State::Padding(file) => file.flush(),
            State::Failed => Ok(()),
        }
    }
}

/// Skips zero bytes; returns whether there is something else.
fn skip_zeros(file: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = file.fill_buf()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        if zeros < bytes.len() || bytes.is_empty() {
            let is_more = zeros < bytes.len();
            file.consume(zeros);
            return Ok(is_more);
        }
        file.consume(zeros);
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// Unpacks with the reader and, in small parts, with the writer, which must agree.
    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let read = GzipMembers::new(BufReader::with_capacity(7, bytes)).read_to_end(&mut all).map(|_| all);
        let mut writer = GzipWriter::new(Vec::new());
        let written = bytes.chunks(5).try_for_each(|part| writer.write_all(part)).and_then(|()| writer.finish());
        assert_eq!(read.as_ref().ok(), written.as_ref().ok());
        read
    }

    #[test]
    fn zeros_after_a_member_are_padding() {
        for padding in [0, 1, 512, 5000] {
            let padding = vec![0; padding];
            assert_eq!(unpacked(&[packed(b"one"), padding.clone()].concat()).unwrap(), b"one");
            let two = [packed(b"one"), padding.clone(), packed(b"two"), padding].concat();
            assert_eq!(unpacked(&two).unwrap(), b"onetwo");
        }
    }

    #[test]
    fn anything_else_after_a_member_is_an_error() {
        for more in [&b"x"[..], b"\0\0garbage", b"\x1f\x8b"] {
            assert!(unpacked(&[&packed(b"one"), more].concat()).is_err(), "{more:?}");
        }
        let whole = packed(b"one two three");
        assert!(unpacked(&whole[..whole.len() - 9]).is_err());
    }
}
