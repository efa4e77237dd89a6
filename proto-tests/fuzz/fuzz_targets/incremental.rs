//! Whatever the bytes and however they are cut, an incremental file gives an error, or blocks that ascend, fit their segment, and are all there; and
//! written again it is the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use walrecv::pg::data_page::PAGE;
use walrecv::pg::incremental::{Event, IncrementalReader};

const PAGES: u32 = 4096;

fuzz_target!(|input: &[u8]| {
    let Some((&[a, b, claimed], file)) = input.split_first_chunk::<3>() else { return };
    let step = 1 + usize::from(u16::from_le_bytes([a, b]));
    // Mostly the true size; the archive's header may say anything.
    let size = if claimed < 200 { file.len() as u64 } else { u64::from(claimed) * 4096 };
    let mut reader = IncrementalReader::new(size, PAGES);
    let (mut header, mut again, mut given) = (None, Vec::new(), Vec::new());
    for piece in file.chunks(step) {
        reader.feed(bytes::Bytes::copy_from_slice(piece));
        loop {
            match reader.next_event() {
                Err(_) => return,
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
    if reader.finish().is_ok() {
        let header = header.expect("a header");
        assert!(*header.blocks == *given && again == file);
    }
});
