//! Output lines of a job, with the rank that wrote each line.
//!
//! Open MPI's `--tag-output` puts `[job,rank]<stdout>:` in front of every chunk that it receives from a rank. Lines
//! that are long or written slowly consist of several chunks with tags in between, interleaved with those of other
//! ranks. [`Assembler`] reassembles the lines.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Format of the rank tag on a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tags {
    /// No tag.
    None,
    /// `[1,3]<stdout>:text`
    OpenMpi,
    /// `[3] text`
    Hydra,
    /// `3: text`, with the number optionally padded with spaces
    Slurm,
}

/// Line without its tag and newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Rank; `None` for lines of mpirun or srun themselves, and for untagged output.
    pub rank: Option<usize>,
    bytes: Vec<u8>,
}

impl Line {
    /// Returns the text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }

    /// Writes the line with its rank as prefix and otherwise unchanged, in one write.
    ///
    /// # Errors
    ///
    /// Returns the error of the stream.
    pub fn write(&self, mut stream: impl Write) -> io::Result<()> {
        let mut line = self.rank.map(|rank| format!("[{rank}] ").into_bytes()).unwrap_or_default();
        line.extend_from_slice(&self.bytes);
        line.push(b'\n');
        stream.write_all(&line)?;
        stream.flush()
    }
}

/// Reassembles the lines of ranks from the lines of a stream.
#[derive(Debug)]
pub struct Assembler {
    tags: Tags,
    /// Unfinished lines of each rank.
    partial_lines: BTreeMap<Option<usize>, Vec<u8>>,
}

impl Assembler {
    /// Creates an assembler for one stream.
    pub fn new(tags: Tags) -> Self {
        Self { tags, partial_lines: BTreeMap::new() }
    }

    /// Takes the stream's next line, without its newline, and returns the rank's line that it completes.
    pub fn line(&mut self, mut bytes: &[u8]) -> Line {
        let (mut rank, text) = self.leading_tag(bytes);
        bytes = text;
        if self.tags == Tags::OpenMpi {
            while let Some(tag) = find_tag(bytes) {
                self.partial_lines.entry(rank).or_default().extend_from_slice(&bytes[..tag.begin]);
                (rank, bytes) = (Some(tag.rank), &bytes[tag.end..]);
            }
        }
        let mut line = self.partial_lines.remove(&rank).unwrap_or_default();
        line.extend_from_slice(bytes);
        Line { rank, bytes: line }
    }

    /// Returns the unfinished lines at the end of the stream.
    pub fn finish(self) -> impl Iterator<Item = Line> {
        self.partial_lines.into_iter().filter(|(_, bytes)| !bytes.is_empty()).map(|(rank, bytes)| Line { rank, bytes })
    }

    fn leading_tag<'a>(&self, bytes: &'a [u8]) -> (Option<usize>, &'a [u8]) {
        let tag = match self.tags {
            Tags::None => None,
            Tags::OpenMpi => find_tag(bytes).filter(|tag| tag.begin == 0).map(|tag| (tag.rank, &bytes[tag.end..])),
            Tags::Hydra => bytes.strip_prefix(b"[").and_then(|rest| number_before(rest, b"] ")),
            Tags::Slurm => number_before(bytes.trim_ascii_start(), b": "),
        };
        tag.map_or((None, bytes), |(rank, text)| (Some(rank), text))
    }
}

/// Position and rank of an Open MPI tag in a line.
struct Tag {
    begin: usize,
    end: usize,
    rank: usize,
}

/// Finds the first `[job,rank]<stream>:` of a line.
fn find_tag(bytes: &[u8]) -> Option<Tag> {
    let brackets = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'[');
    brackets.map(|(begin, _)| begin).find_map(|begin| {
        let inside = &bytes[begin + 1..];
        let comma = inside.iter().position(|&byte| byte == b',')?;
        if inside[..comma].iter().any(|byte| byte.is_ascii_whitespace() || b"[]<>".contains(byte)) {
            return None;
        }
        let (rank, rest) = number_before(&inside[comma + 1..], b"]<std")?;
        let streams: [&[u8]; 3] = [b"out>:", b"err>:", b"diag>:"];
        let text = streams.iter().find_map(|stream| rest.strip_prefix(*stream))?;
        Some(Tag { begin, end: bytes.len() - text.len(), rank })
    })
}

/// Splits `17MARKtext` into 17 and the text.
fn number_before<'a>(bytes: &'a [u8], mark: &[u8]) -> Option<(usize, &'a [u8])> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&bytes[..digits]).ok()?.parse().ok()?;
    Some((number, bytes[digits..].strip_prefix(mark)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tags: Tags, stream: &str) -> String {
        let mut assembler = Assembler::new(tags);
        let mut text = Vec::new();
        stream.lines().for_each(|line| assembler.line(line.as_bytes()).write(&mut text).unwrap());
        assembler.finish().for_each(|line| line.write(&mut text).unwrap());
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn parses_the_tags_of_each_launcher() {
        assert_eq!(shown(Tags::OpenMpi, "[1,12]<stdout>:epoch 3\n[1,0]<stderr>: x"), "[12] epoch 3\n[0]  x\n");
        assert_eq!(shown(Tags::OpenMpi, "[prterun-node-7@1,2]<stdout>:a"), "[2] a\n");
        assert_eq!(shown(Tags::Hydra, "[3] [1] text\n[proxy] x"), "[3] [1] text\n[proxy] x\n");
        assert_eq!(shown(Tags::Slurm, "0: a\n 3: b\nsrun: error: c"), "[0] a\n[3] b\nsrun: error: c\n");
        assert_eq!(shown(Tags::None, "[1,0]<stdout>:a\n3: b"), "[1,0]<stdout>:a\n3: b\n");
    }

    #[test]
    fn lines_of_the_launcher_have_no_rank() {
        assert_eq!(
            shown(Tags::OpenMpi, "mpirun has exited\n[a, b] [1,x]<stdout>:"),
            "mpirun has exited\n[a, b] [1,x]<stdout>:\n"
        );
    }

    #[test]
    fn joins_pieces_of_lines() {
        let stream =
            "[1,0]<stdout>:ab[1,1]<stdout>:AB[1,0]<stdout>:cd\n[1,1]<stdout>:CD\n[1,0]<stdout>:rest[1,1]<stdout>:Rest";
        // Text without a newline at the end of the stream belongs to the last tagged rank.
        assert_eq!(shown(Tags::OpenMpi, stream), "[0] abcd\n[1] ABCD\n[1] Rest\n[0] rest\n");
        assert_eq!(shown(Tags::OpenMpi, "[1,0]<stdout>:long [1,0]<stdout>:line"), "[0] long line\n");
    }

    #[test]
    fn forwards_bytes_that_are_not_utf8() {
        let line = Assembler::new(Tags::OpenMpi).line(b"[1,0]<stdout>:\xff\x00");
        let mut text = Vec::new();
        line.write(&mut text).unwrap();
        assert_eq!(text, b"[0] \xff\x00\n");
        assert_eq!(line.text(), "\u{fffd}\0");
    }
}
