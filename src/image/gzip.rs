//! Decompression of gzip files with several members and padding.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

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
    use std::io::{BufReader, Write};

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn unpacked(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        GzipMembers::new(BufReader::with_capacity(7, bytes)).read_to_end(&mut all).map(|_| all)
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
