//! With the instructions of x86-64: `crc32` (SSE 4.2) takes 8 bytes, and its result three cycles later, but another one each cycle. So three stretches are
//! summed beside each other, each from zero, and carry-less products (`pclmulqdq`) join the sums while the next three are under way. The stretches are short:
//! bytes that are not in the cache yet then come in the order in which the processor fetches ahead.
//!
//! The CRC is the remainder of a polynomial over GF(2) in reflected order: bit 0 of a register is the highest power. Bytes that follow a sum multiply it by
//! x⁸ each. The product of two reflected 32-bit polynomials, taken as a reflected 64-bit one, is theirs times x, and `crc32` of 64 bits multiplies by x³²
//! before it reduces: so the constant that moves a sum past n words is x⁶⁴ⁿ⁻³³.

use std::arch::x86_64::{
    _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64, _mm_cvtsi64_si128, _mm_cvtsi128_si64,
};

/// Words of 8 bytes in a stretch.
const STRETCH: usize = 16;
/// Shorter pieces are done before three sums would be joined.
const WORTH_IT: usize = 96;
/// The polynomial, reflected, without its highest power.
const POLYNOMIAL: u32 = 0x82F6_3B78;
/// By a number of words: what moves a sum past them.
static PAST: [u32; 3 * STRETCH + 1] = past();

const fn past() -> [u32; 3 * STRETCH + 1] {
    let mut table = [0; 3 * STRETCH + 1];
    // x³¹, for one word.
    let mut power = 1;
    let mut words = 1;
    while words < table.len() {
        table[words] = power;
        let mut bit = 0;
        while bit < 64 {
            power = (power >> 1) ^ (if power & 1 == 1 { POLYNOMIAL } else { 0 });
            bit += 1;
        }
        words += 1;
    }
    table
}

/// As [`super::append`].
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub fn append(crc: u32, bytes: &[u8]) -> u32 {
    let mut sum = u64::from(!crc);
    let mut rest = bytes;
    while let Some((three, after)) = rest.split_first_chunk::<{ 3 * STRETCH * 8 }>() {
        sum = join(sum, three, STRETCH);
        rest = after;
    }
    if rest.len() >= WORTH_IT {
        let words = rest.len() / 24;
        let (three, after) = rest.split_at(words * 24);
        sum = join(sum, three, words);
        rest = after;
    }
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        sum = _mm_crc32_u64(sum, u64::from_le_bytes(*word));
    }
    let mut sum = sum as u32;
    let mut rest = rest;
    if let Some((half, after)) = rest.split_first_chunk::<4>() {
        sum = _mm_crc32_u32(sum, u32::from_le_bytes(*half));
        rest = after;
    }
    for byte in rest {
        sum = _mm_crc32_u8(sum, *byte);
    }
    !sum
}

/// The sum of what `sum` covers, and three stretches of so many words.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
fn join(sum: u64, bytes: &[u8], words: usize) -> u64 {
    let (first, after) = bytes.split_at(words * 8);
    let (second, third) = after.split_at(words * 8);
    let (first, second, third) = (first.as_chunks::<8>().0, second.as_chunks::<8>().0, third.as_chunks::<8>().0);
    let (mut a, mut b, mut c) = (0, 0, 0);
    for ((x, y), z) in first.iter().zip(second).zip(third) {
        a = _mm_crc32_u64(a, u64::from_le_bytes(*x));
        b = _mm_crc32_u64(b, u64::from_le_bytes(*y));
        c = _mm_crc32_u64(c, u64::from_le_bytes(*z));
    }
    c ^ _mm_crc32_u64(0, product(sum, PAST[3 * words]) ^ product(a, PAST[2 * words]) ^ product(b, PAST[words]))
}

#[inline]
#[target_feature(enable = "sse2,pclmulqdq")]
fn product(sum: u64, power: u32) -> u64 {
    let (sum, power) = (_mm_cvtsi64_si128(sum as i64), _mm_cvtsi64_si128(i64::from(power)));
    _mm_cvtsi128_si64(_mm_clmulepi64_si128::<0>(sum, power)) as u64
}
