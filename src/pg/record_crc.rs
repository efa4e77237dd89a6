//! CRC-32C as PostgreSQL keeps it over WAL records (`port/pg_crc32c.h`), fast for pieces of any length at any address.
//!
//! The `crc32c` package is made for long buffers that begin at a multiple of 8. Records are neither: most are shorter than 300 bytes, the others are cut by
//! page borders, and what a socket delivers begins anywhere. It stays what computes where the processor lacks the instructions, and what the tests compare with.

#[cfg(target_arch = "x86_64")]
mod x86;

/// The CRC of what `crc` covers, followed by `bytes`. 0 covers nothing.
#[inline]
pub fn append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") && std::arch::is_x86_feature_detected!("pclmulqdq") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { x86::append(crc, bytes) };
    }
    crc32c::crc32c_append(crc, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes without a pattern.
    fn noise(len: usize, mut state: u64) -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn the_check_value_of_the_polynomial() {
        assert_eq!(append(0, b"123456789"), 0xE306_9283);
        assert_eq!(append(0, b""), 0);
        assert_eq!(append(0x1234_5678, b""), 0x1234_5678);
    }

    #[test]
    fn every_length_at_every_address_is_as_the_package_computes_it() {
        let bytes = noise(40_000, 1);
        for offset in 0..8 {
            for len in (0..1200).chain([4095, 8168, 12_287, 12_288, 12_289, 12_300, 24_600, 30_000, 39_000]) {
                let piece = &bytes[offset..offset + len];
                for crc in [0, 0xFFFF_FFFF, 0x89AB_CDEF] {
                    assert_eq!(append(crc, piece), crc32c::crc32c_append(crc, piece), "{len} bytes at {offset}");
                }
            }
        }
    }

    #[test]
    fn any_cut_gives_the_same() {
        let bytes = noise(20_000, 2);
        let whole = append(0, &bytes);
        for cut in (0..20_000).step_by(7) {
            let (a, b) = bytes.split_at(cut);
            assert_eq!(append(append(0, a), b), whole, "cut at {cut}");
        }
    }
}
