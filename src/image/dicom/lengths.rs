//! What a file claims of its elements' lengths, compared with what it has: the parser takes memory for what it is told.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Group and element.
type Tag = (u16, u16);

/// Transfer syntaxes (DICOM PS3.5, annex A) that are written otherwise than the rest.
const IMPLICIT_SYNTAX: &str = "1.2.840.10008.1.2";
const BIG_ENDIAN_SYNTAX: &str = "1.2.840.10008.1.2.2";

const META_LENGTH: Tag = (0x0002, 0x0000);
const TRANSFER_SYNTAX: Tag = (0x0002, 0x0010);
const PIXEL_DATA: Tag = (0x7FE0, 0x0010);
const ITEM: Tag = (0xFFFE, 0xE000);
const ITEM_END: Tag = (0xFFFE, 0xE00D);
const SEQUENCE_END: Tag = (0xFFFE, 0xE0DD);
/// A length that is not said: the end is marked.
const UNDEFINED: u32 = u32::MAX;
/// Bytes of a tag and a length.
const HEADER: u64 = 8;
/// Sequences within sequences. Real files have a handful, and the parser recurses.
const DEPTH: usize = 64;
/// Value representations whose length has two bytes (DICOM PS3.5, section 7.1.2).
const SHORT: [&[u8; 2]; 20] = [
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
    b"ST", b"TM", b"UI", b"UL",
];
const UNSIGNED_SHORT: &[u8; 2] = b"US";

/// Says which element claims more than the file has, of all up to the first that is to follow the pixels.
///
/// # Errors
/// One line without the path. What is no DICOM file, or is compressed as a whole, is left to the parser.
pub fn check_lengths(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let Some(start) = start_of(&file).map_err(|error| error.to_string())? else { return Ok(()) };
    let mut walk = Walk { file: BufReader::new(file), position: start, length, is_implicit: false, within: Vec::new() };
    walk.to(start).map_err(|error| error.to_string())?;
    walk.meta()?;
    walk.data_set()
}

/// Where the first element begins: behind `DICM`, which has a preamble before it or not.
fn start_of(file: &File) -> std::io::Result<Option<u64>> {
    let mut head = Vec::new();
    file.take(132).read_to_end(&mut head)?;
    Ok([128, 0].into_iter().find(|at| head[*at.min(&head.len())..].starts_with(b"DICM")).map(|at| at as u64 + 4))
}

/// What is open around an element.
#[derive(Clone, Copy)]
enum Around {
    /// A sequence; in one whose representation is unknown, elements do not say theirs.
    Sequence {
        end: Option<u64>,
        is_implicit: bool,
    },
    Item {
        end: Option<u64>,
    },
    /// Pieces of compressed pixels, which are no elements.
    Fragments,
}

impl Around {
    fn end(self) -> Option<u64> {
        match self {
            Self::Sequence { end, .. } | Self::Item { end } => end,
            Self::Fragments => None,
        }
    }
}

struct Walk {
    file: BufReader<File>,
    position: u64,
    /// Of the file.
    length: u64,
    /// Of the data set: elements do not say what they are.
    is_implicit: bool,
    within: Vec<Around>,
}

impl Walk {
    /// What stands before the data set and says how that is written. It is as long as its first element says, whatever is in
    /// it, and always explicit.
    fn meta(&mut self) -> Result<(), String> {
        let (tag, (_, length)) = (self.tag()?, self.representation_and_length(false)?);
        if tag != META_LENGTH || length != 4 {
            return Err("does not begin with the length of its meta group".into());
        }
        let length = u32::from_le_bytes(self.bytes()?);
        let end = self.position + u64::from(length);
        while self.position < end {
            let tag = self.tag()?;
            // Items have no representation, wherever they are.
            let (_, length) = self.representation_and_length(tag.0 == ITEM.0)?;
            match tag {
                TRANSFER_SYNTAX => self.transfer_syntax(tag, length)?,
                _ => self.skip(tag, length)?,
            }
        }
        Ok(())
    }

    fn data_set(&mut self) -> Result<(), String> {
        while self.length - self.position >= HEADER {
            while self.within.last().is_some_and(|around| around.end().is_some_and(|end| end <= self.position)) {
                self.within.pop();
            }
            let tag = self.tag()?;
            match tag {
                ITEM => self.item()?,
                ITEM_END => {
                    self.bytes::<4>()?;
                    self.leave(|around| matches!(around, Around::Item { .. }));
                }
                SEQUENCE_END => {
                    self.bytes::<4>()?;
                    self.leave(|around| !matches!(around, Around::Item { .. }));
                }
                // Here the parser stops as well: not behind the pixels, but at what may only follow them.
                tag if tag > PIXEL_DATA && self.within.is_empty() => return Ok(()),
                _ => self.element(tag)?,
            }
            if self.within.len() > DEPTH {
                return Err(format!("has sequences within sequences, more than {DEPTH} deep"));
            }
        }
        Ok(())
    }

    fn item(&mut self) -> Result<(), String> {
        let length = u32::from_le_bytes(self.bytes()?);
        if let Some(Around::Fragments) = self.within.last() {
            return self.skip(ITEM, length);
        }
        let end = self.end_of(ITEM, length)?;
        self.within.push(Around::Item { end });
        Ok(())
    }

    fn element(&mut self, tag: Tag) -> Result<(), String> {
        let of_sequence = self.within.iter().rev().find_map(|around| match around {
            Around::Sequence { is_implicit, .. } => Some(*is_implicit),
            _ => None,
        });
        let (representation, length) = self.representation_and_length(of_sequence.unwrap_or(self.is_implicit))?;
        let end = self.end_of(tag, length)?;
        let is_sequence = match &representation {
            Some(known) => known == b"SQ" || length == UNDEFINED && known == b"UN",
            None => length == UNDEFINED || length > 0 && self.is_at_item()?,
        };
        match (is_sequence, length) {
            (true, _) => {
                let is_implicit = representation.is_none_or(|known| &known == b"UN");
                self.within.push(Around::Sequence { end, is_implicit });
                Ok(())
            }
            (false, UNDEFINED) => {
                self.within.push(Around::Fragments);
                Ok(())
            }
            (false, length) => self.skip(tag, length),
        }
    }

    /// `None` for the representation where elements do not say it.
    fn representation_and_length(&mut self, is_implicit: bool) -> Result<(Option<[u8; 2]>, u32), String> {
        if is_implicit {
            return Ok((None, u32::from_le_bytes(self.bytes()?)));
        }
        let [a, b, low, high] = self.bytes()?;
        let known = [a, b];
        if SHORT.contains(&&known) || &known == UNSIGNED_SHORT {
            return Ok((Some(known), u16::from_le_bytes([low, high]).into()));
        }
        Ok((Some(known), u32::from_le_bytes(self.bytes()?)))
    }

    fn transfer_syntax(&mut self, tag: Tag, length: u32) -> Result<(), String> {
        self.end_of(tag, length)?;
        let mut text = vec![0; length.min(64) as usize];
        self.file.read_exact(&mut text).map_err(|error| error.to_string())?;
        self.position += text.len() as u64;
        let text = String::from_utf8_lossy(&text);
        let syntax = text.trim_end_matches([' ', '\0']);
        if syntax == BIG_ENDIAN_SYNTAX {
            return Err("its numbers are big-endian; rewrite it by `gdcmconv --raw IN OUT`".into());
        }
        self.is_implicit = syntax == IMPLICIT_SYNTAX;
        self.skip(tag, length - length.min(64))
    }

    /// Where what is so long will have ended; `None` where that is marked.
    fn end_of(&self, tag: Tag, length: u32) -> Result<Option<u64>, String> {
        let left = self.length - self.position;
        match length {
            UNDEFINED => Ok(None),
            length if u64::from(length) <= left => Ok(Some(self.position + u64::from(length))),
            length => {
                let (group, element) = tag;
                Err(format!("({group:04X},{element:04X}) claims {length} bytes, of which {left} are there"))
            }
        }
    }

    fn skip(&mut self, tag: Tag, length: u32) -> Result<(), String> {
        match self.end_of(tag, length)? {
            Some(end) => self.to(end).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    /// Leaves all that is open up to the innermost that `is_meant`.
    fn leave(&mut self, is_meant: fn(&Around) -> bool) {
        if let Some(at) = self.within.iter().rposition(is_meant) {
            self.within.truncate(at);
        }
    }

    fn is_at_item(&mut self) -> Result<bool, String> {
        let here = self.position;
        let is_item = self.length - here >= HEADER && self.tag()? == ITEM;
        self.to(here).map_err(|error| error.to_string())?;
        Ok(is_item)
    }

    fn tag(&mut self) -> Result<Tag, String> {
        let [a, b, c, d] = self.bytes()?;
        Ok((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(|_| "ends within an element".to_owned())?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn to(&mut self, position: u64) -> std::io::Result<()> {
        match i64::try_from(position.wrapping_sub(self.position)) {
            Ok(forward) if position >= self.position => self.file.seek_relative(forward)?,
            _ => {
                self.file.seek(SeekFrom::Start(position))?;
            }
        }
        self.position = position;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of a transfer syntax.
    fn file(syntax: &[u8], elements: &[&[u8]]) -> Result<(), String> {
        file_with(syntax, &[], elements)
    }

    /// One with more in its meta group.
    fn file_with(syntax: &[u8], more: &[u8], elements: &[&[u8]]) -> Result<(), String> {
        let meta = [b"\x02\0\x10\0UI".as_slice(), &(syntax.len() as u16).to_le_bytes(), syntax, more].concat();
        let length = [b"\x02\0\0\0UL\x04\0".as_slice(), &(meta.len() as u32).to_le_bytes()].concat();
        let bytes = [&[0; 128], b"DICM".as_slice(), &length, &meta, &elements.concat()].concat();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        check_lengths(file.path())
    }

    const EXPLICIT: &[u8] = b"1.2.840.10008.1.2.1\0";
    const IMPLICIT: &[u8] = b"1.2.840.10008.1.2\0";
    const ITEM_OF_ANY: &[u8] = b"\xFE\xFF\0\xE0\xFF\xFF\xFF\xFF";
    const ENDS: &[u8] = b"\xFE\xFF\x0D\xE0\0\0\0\0\xFE\xFF\xDD\xE0\0\0\0\0";

    #[test]
    fn an_element_is_no_longer_than_the_file() {
        assert_eq!(file(EXPLICIT, &[b"\x28\0\x10\0US\x02\0\x01\0"]), Ok(()));
        assert_eq!(file(IMPLICIT, &[b"\x28\0\x10\0\x02\0\0\0\x01\0"]), Ok(()));
        let claim = "(0028,0010) claims 1610613760 bytes, of which 2 are there".to_owned();
        assert_eq!(file(IMPLICIT, &[b"\x28\0\x10\0\0\x04\0\x60\x01\0"]), Err(claim.clone()));
        assert_eq!(file(EXPLICIT, &[b"\x28\0\x10\0OB\0\0\0\x04\0\x60\x01\0"]), Err(claim));
    }

    #[test]
    fn what_is_in_the_meta_group_does_not_end_it() {
        let stray: &[u8] = b"\x02\x80\x02\0UI\x02\0\x31\0";
        let claim: &[u8] = b"\x28\0\x10\0OB\0\0\0\x04\0\x60\x01\0";
        assert!(file_with(EXPLICIT, stray, &[claim]).unwrap_err().contains("(0028,0010) claims"));
    }

    #[test]
    fn big_endian_numbers_are_not_taken_for_others() {
        assert!(file(b"1.2.840.10008.1.2.2\0", &[]).unwrap_err().contains("big-endian"));
    }

    #[test]
    fn claims_within_sequences_are_met_and_their_ends_found() {
        // Of unsaid length, of a stated one, and one whose elements do not say what they are.
        let short: &[u8] = b"\x08\0\x60\0CS\x02\0CT";
        let open: &[u8] = b"\x08\0\x40\x11SQ\0\0\xFF\xFF\xFF\xFF";
        let closed: &[u8] = b"\x08\0\x40\x11SQ\0\0\x12\0\0\0\xFE\xFF\0\xE0\x0A\0\0\0";
        let unknown: &[u8] = b"\x09\0\x40\x11UN\0\0\xFF\xFF\xFF\xFF";
        let implicit: &[u8] = b"\x08\0\x60\0\x02\0\0\0CT";
        let too_long: &[u8] = b"\x08\0\x60\0CS\x20\0CT";
        let sound = [open, ITEM_OF_ANY, short, ENDS, closed, short, unknown, ITEM_OF_ANY, implicit, ENDS, short];
        assert_eq!(file(EXPLICIT, &sound), Ok(()));
        for place in [2, 5, 10] {
            let mut elements = sound;
            elements[place] = too_long;
            let elements = &elements[..=place];
            assert!(file(EXPLICIT, elements).unwrap_err().contains("(0008,0060) claims 32 bytes"), "{place}");
        }
        assert!(file(EXPLICIT, &[&[open, ITEM_OF_ANY].concat().repeat(40)]).unwrap_err().contains("deep"));
    }

    #[test]
    fn what_is_to_follow_the_pixels_does_not_count_and_those_of_an_icon_are_not_them() {
        let pixels: &[u8] = b"\xE0\x7F\x10\0OW\0\0\x02\0\0\0\x01\0";
        let icon: &[u8] = b"\x88\0\0\x02SQ\0\0\xFF\xFF\xFF\xFF";
        let bad: &[u8] = b"\xFC\xFF\xFC\xFFOB\0\0\0\x04\0\x60\x01\0";
        assert_eq!(file(EXPLICIT, &[pixels, bad]), Ok(()));
        let misplaced: &[u8] = b"\x28\0\x10\0OB\0\0\0\x04\0\x60\x01\0";
        assert!(file(EXPLICIT, &[pixels, misplaced]).unwrap_err().contains("(0028,0010) claims"));
        assert!(file(EXPLICIT, &[icon, ITEM_OF_ANY, pixels, ENDS, misplaced]).is_err());
        let pieces: &[u8] = b"\xE0\x7F\x10\0OB\0\0\xFF\xFF\xFF\xFF\xFE\xFF\0\xE0\x02\0\0\0\xFF\xFF";
        assert!(file(EXPLICIT, &[icon, ITEM_OF_ANY, pieces, &ENDS[8..], ENDS, misplaced]).is_err());
        assert_eq!(file(EXPLICIT, &[pieces, &ENDS[8..], bad]), Ok(()));
        assert!(file(EXPLICIT, &[pieces, &ENDS[8..], misplaced]).is_err());
        assert!(file(EXPLICIT, &[pieces, bad]).is_err());
    }
}
