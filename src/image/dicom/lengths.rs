//! Checks the element lengths that a DICOM file declares against the size of the file, because the parser allocates the
//! declared length before it reads.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use dicom_encoding::decode::{Decode, file_header_decoder};
use dicom_encoding::transfer_syntax::{Codec, TransferSyntax, TransferSyntaxIndex};
use dicom_object::{FileMetaTable, Tag};
use dicom_parser::StatefulDecode;
use dicom_parser::dataset::LazyDataToken;
use dicom_parser::dataset::lazy_read::LazyDataSetReader;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

const MAGIC: &[u8] = b"DICM";
const META_LENGTH: Tag = Tag(0x0002, 0x0000);
const PIXEL_DATA: Tag = Tag(0x7FE0, 0x0010);
/// Maximum nesting of sequences. Real files nest a few levels deep, and the parser recurses.
const DEPTH: usize = 64;

/// Checks that no element the parser may read declares more bytes than the file has.
///
/// # Errors
/// Returns a one-line message without the path. Files that are not DICOM pass; the parser rejects them.
pub fn check_lengths(path: &Path) -> Result<(), String> {
    let mut file = BufReader::new(File::open(path).map_err(error_chain)?);
    let length = file.get_ref().metadata().map_err(error_chain)?.len();
    let Some(start) = start_of(&mut file).map_err(error_chain)? else { return Ok(()) };
    file.seek(SeekFrom::Start(start + MAGIC.len() as u64)).map_err(error_chain)?;
    check_meta(&mut file, length)?;
    file.seek(SeekFrom::Start(start)).map_err(error_chain)?;
    let meta = FileMetaTable::from_reader(&mut file).map_err(error_chain)?;
    match TransferSyntaxRegistry.get(meta.transfer_syntax()) {
        // Encapsulated syntaxes compress only the pixel data, not the data set (DICOM PS3.5, annex A).
        Some(syntax) if !matches!(syntax.codec(), Codec::Dataset(_)) => check_data_set(file, length, syntax),
        // The parser rejects unknown and deflated syntaxes.
        _ => Ok(()),
    }
}

/// Byte offset of `DICM`, which stands after a 128-byte preamble or at the start of the file.
fn start_of(file: &mut impl Read) -> std::io::Result<Option<u64>> {
    let mut head = Vec::new();
    file.take(132).read_to_end(&mut head)?;
    Ok([128, 0].into_iter().find(|at| head[*at.min(&head.len())..].starts_with(MAGIC)).map(|at| at as u64))
}

/// Checks the file meta group, which precedes the data set. Its first element declares its length, whatever elements
/// follow.
fn check_meta(file: &mut BufReader<File>, length: u64) -> Result<(), String> {
    let decoder = file_header_decoder();
    let header = |file: &mut BufReader<File>| decoder.decode_header(file).map_err(error_chain);
    let (first, _) = header(file)?;
    if first.tag != META_LENGTH || first.len.0 != 4 {
        return Err("does not start with the length of its file meta group (0002,0000)".into());
    }
    let mut group = [0; 4];
    file.read_exact(&mut group).map_err(error_chain)?;
    let mut left_of_group = u32::from_le_bytes(group);
    while left_of_group > 0 {
        let (element, bytes) = header(file)?;
        let left = length.saturating_sub(file.stream_position().map_err(error_chain)?);
        if u64::from(element.len.0) > left {
            return Err(length_error(element.tag, element.len.0, left));
        }
        file.seek_relative(element.len.0.into()).map_err(error_chain)?;
        left_of_group = left_of_group.saturating_sub(bytes as u32).saturating_sub(element.len.0);
    }
    Ok(())
}

/// A sequence or item whose end has not been read.
#[derive(PartialEq)]
enum OpenElement {
    Sequence,
    Item,
}

/// Checks the data set with the parser's own token reader, which stops before each value.
fn check_data_set(file: BufReader<File>, length: u64, syntax: &TransferSyntax) -> Result<(), String> {
    let mut reader = LazyDataSetReader::new_with_ts(file, syntax).map_err(error_chain)?;
    let mut open = Vec::new();
    let mut items = 0;
    while let Some(token) = reader.advance() {
        match token.map_err(error_chain)? {
            // Same stop condition as the parser: the first element with a tag after PixelData.
            LazyDataToken::ElementHeader(header) if open.is_empty() && header.tag > PIXEL_DATA => return Ok(()),
            LazyDataToken::SequenceStart { tag, .. } if open.is_empty() && tag > PIXEL_DATA => return Ok(()),
            LazyDataToken::SequenceStart { .. } => open.push(OpenElement::Sequence),
            LazyDataToken::PixelSequenceStart => {
                open.push(OpenElement::Sequence);
                items = 0;
            }
            LazyDataToken::ItemStart { .. } => {
                open.push(OpenElement::Item);
                items += 1;
            }
            // The parser panics on an item end outside of an item.
            LazyDataToken::ItemEnd if open.pop() != Some(OpenElement::Item) => {
                return Err("has an item end (FFFE,E00D) outside of an item".into());
            }
            LazyDataToken::SequenceEnd => drop(open.pop()),
            LazyDataToken::LazyValue { header, decoder } => {
                let (left, claimed) = (length.saturating_sub(decoder.position()), header.len.0);
                if u64::from(claimed) > left {
                    return Err(length_error(header.tag, claimed, left));
                }
                // Parsed, not skipped: if the length is not a multiple of the value size, the parser reads fewer bytes.
                LazyDataToken::LazyValue { header, decoder }.into_value().map_err(error_chain)?;
            }
            LazyDataToken::LazyItemValue { len, decoder } => {
                let left = length.saturating_sub(decoder.position());
                if u64::from(len) > left {
                    return Err(length_error(PIXEL_DATA, len, left));
                }
                if items == 1 && len % 4 > 0 {
                    return Err(format!("has a basic offset table of {len} bytes, not a multiple of 4"));
                }
                LazyDataToken::LazyItemValue { len, decoder }.skip().map_err(error_chain)?;
            }
            _ => {}
        }
        // Each level counts twice: the sequence and its item.
        if open.len() > 2 * DEPTH {
            return Err(format!("nests sequences more than {DEPTH} levels deep"));
        }
    }
    Ok(())
}

fn length_error(Tag(group, element): Tag, claimed: u32, left: u64) -> String {
    format!("({group:04X},{element:04X}) declares {claimed} bytes, but the file has only {left} left")
}

/// One line with the error's causes: the parser's own message only says where parsing stopped.
fn error_chain(error: impl Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks a file with the given transfer syntax and elements.
    fn file(syntax: &[u8], elements: &[&[u8]]) -> Result<(), String> {
        file_with(syntax, &[], elements)
    }

    /// Same, with more elements in the file meta group.
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
    fn rejects_an_element_longer_than_the_file() {
        assert_eq!(file(EXPLICIT, &[b"\x28\0\x10\0US\x02\0\x01\0"]), Ok(()));
        let implicit: &[u8] = b"\x28\0\x10\0\x02\0\0\0\x01\0";
        assert_eq!(file(IMPLICIT, &[implicit]), Ok(()));
        // The parser ignores white space after the UID.
        assert_eq!(file(b"1.2.840.10008.1.2\t\0 ", &[implicit]), Ok(()));
        let claim = "(0028,0010) declares 1610613760 bytes, but the file has only 2 left".to_owned();
        assert_eq!(file(IMPLICIT, &[b"\x28\0\x10\0\0\x04\0\x60\x01\0"]), Err(claim.clone()));
        assert_eq!(file(EXPLICIT, &[b"\x28\0\x10\0OB\0\0\0\x04\0\x60\x01\0"]), Err(claim));
    }

    #[test]
    fn reads_the_meta_group_to_its_declared_length() {
        let stray: &[u8] = b"\x02\x80\x02\0UI\x02\0\x31\0";
        let claim: &[u8] = b"\x28\0\x10\0OB\0\0\0\x04\0\x60\x01\0";
        assert!(file_with(EXPLICIT, stray, &[claim]).unwrap_err().contains("(0028,0010) declares"));
    }

    #[test]
    fn reads_big_endian_lengths() {
        let rows: &[u8] = b"\0\x28\0\x10US\0\x02\0\x01";
        let claim: &[u8] = b"\0\x28\0\x11OB\0\0\0\0\x04\0\x01";
        assert_eq!(file(b"1.2.840.10008.1.2.2\0", &[rows]), Ok(()));
        assert!(file(b"1.2.840.10008.1.2.2\0", &[rows, claim]).unwrap_err().contains("(0028,0011) declares 1024"));
    }

    #[test]
    fn checks_lengths_within_sequences_and_finds_their_ends() {
        // Sequences of undefined and of defined length.
        let short: &[u8] = b"\x08\0\x60\0CS\x02\0CT";
        let open: &[u8] = b"\x08\0\x40\x11SQ\0\0\xFF\xFF\xFF\xFF";
        let closed: &[u8] = b"\x08\0\x40\x11SQ\0\0\x12\0\0\0\xFE\xFF\0\xE0\x0A\0\0\0";
        let too_long: &[u8] = b"\x08\0\x60\0CS\x20\0CT";
        let sound = [open, ITEM_OF_ANY, short, ENDS, closed, short, short];
        assert_eq!(file(EXPLICIT, &sound), Ok(()));
        for place in [2, 5, 6] {
            let mut elements = sound;
            elements[place] = too_long;
            let elements = &elements[..=place];
            assert!(file(EXPLICIT, elements).unwrap_err().contains("(0008,0060) declares 32 bytes"), "{place}");
        }
        assert!(file(EXPLICIT, &[&[open, ITEM_OF_ANY].concat().repeat(80)]).unwrap_err().contains("deep"));
    }

    #[test]
    fn rejects_an_item_end_outside_of_an_item() {
        let (item_ends, sequence) = (&ENDS[..8], b"\x08\0\x40\x11SQ\0\0\xFF\xFF\xFF\xFF");
        for elements in [[item_ends, ITEM_OF_ANY].as_slice(), &[sequence, item_ends, ITEM_OF_ANY]] {
            assert!(file(EXPLICIT, elements).unwrap_err().contains("outside of an item"));
        }
    }

    #[test]
    fn stops_after_the_pixels_of_the_image_not_of_an_icon() {
        let pixels: &[u8] = b"\xE0\x7F\x10\0OW\0\0\x02\0\0\0\x01\0";
        let icon: &[u8] = b"\x88\0\0\x02SQ\0\0\xFF\xFF\xFF\xFF";
        let bad: &[u8] = b"\xFC\xFF\xFC\xFFOB\0\0\0\x04\0\x60\x01\0";
        assert_eq!(file(EXPLICIT, &[pixels, bad]), Ok(()));
        let misplaced: &[u8] = b"\x28\0\x10\0OB\0\0\0\x04\0\x60\x01\0";
        assert!(file(EXPLICIT, &[pixels, misplaced]).unwrap_err().contains("(0028,0010) declares"));
        assert!(file(EXPLICIT, &[icon, ITEM_OF_ANY, pixels, ENDS, misplaced]).is_err());
        let pieces: &[u8] = b"\xE0\x7F\x10\0OB\0\0\xFF\xFF\xFF\xFF\xFE\xFF\0\xE0\x02\0\0\0\xFF\xFF";
        assert!(file(EXPLICIT, &[icon, ITEM_OF_ANY, pieces, &ENDS[8..], ENDS, misplaced]).is_err());
        assert!(file(EXPLICIT, &[pieces, &ENDS[8..], bad]).unwrap_err().contains("offset table"));
        let pieces: &[u8] =
            b"\xE0\x7F\x10\0OB\0\0\xFF\xFF\xFF\xFF\xFE\xFF\0\xE0\0\0\0\0\xFE\xFF\0\xE0\x02\0\0\0\xFF\xFF";
        assert_eq!(file(EXPLICIT, &[pieces, &ENDS[8..], bad]), Ok(()));
        assert!(file(EXPLICIT, &[pieces, &ENDS[8..], misplaced]).is_err());
        assert!(file(EXPLICIT, &[pieces, bad]).is_err());
    }
}
