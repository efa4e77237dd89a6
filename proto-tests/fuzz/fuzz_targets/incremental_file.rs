//! What holds of an incremental file whatever its bytes are, and however they are cut: it is refused, or its blocks ascend, fit their segment and are all
//! there, and written again it is the same bytes.

use walrecv::pg::data_page::PAGE;
use walrecv::pg::incremental::{Event, IncrementalReader};

/// Pages in a segment of the relation.
pub const PAGES: u32 = 4096;

/// `input`: two bytes that say how the file is cut, one that says how long its archive calls it, and the file. Whether it was taken.
pub fn look(input: &[u8]) -> bool {
    let Some((&[a, b, claimed], file)) = input.split_first_chunk::<3>() else { return false };
    let step = 1 + usize::from(u16::from_le_bytes([a, b]));
    // Mostly the true size; the archive's header may say anything.
    let size = if claimed < 200 { file.len() as u64 } else { u64::from(claimed) * 4096 };
    let mut reader = IncrementalReader::new(size, PAGES);
    let (mut header, mut again, mut given) = (None, Vec::new(), Vec::new());
    for piece in file.chunks(step) {
        reader.feed(bytes::Bytes::copy_from_slice(piece));
        loop {
            match reader.next_event() {
                Err(_) => return false,
                Ok(None) => break,
                Ok(Some(Event::Header(found))) => {
                    assert!(header.is_none());
                    again.extend_from_slice(&0xd3ae_1f0d_u32.to_le_bytes());
                    again.extend_from_slice(&(found.blocks.len() as u32).to_le_bytes());
                    again.extend_from_slice(&found.truncation.to_le_bytes());
                    again.extend(found.blocks.iter().flat_map(|n| n.to_le_bytes()));
                    if !found.blocks.is_empty() {
                        again.resize(again.len().next_multiple_of(PAGE), 0);
                    }
                    assert!(found.blocks.is_sorted_by(|a, b| a < b) && found.len() <= PAGES);
                    header = Some(found);
                }
                Ok(Some(Event::Block { number, page })) => {
                    assert_eq!(page.len(), PAGE);
                    given.push(number);
                    again.extend_from_slice(&page);
                }
            }
        }
    }
    if reader.finish().is_err() {
        return false;
    }
    let header = header.expect("a header");
    assert!(*header.blocks == *given && again == file && size == file.len() as u64);
    true
}
