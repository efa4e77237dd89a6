//! CRC-32C of a file whose pieces are known one by one and in any order (`pg_crc32c.h`: the polynomial of Castagnoli, bits reversed).
//!
//! A CRC is linear: that of a whole is the exclusive or of those of its parts, each moved by as many zero bytes as follow it. To move one by n bytes
//! is to multiply it by x^8n modulo the polynomial, which takes one multiplication for each bit of n.

/// The polynomial, bits reversed, without its highest term.
const POLYNOMIAL: u32 = 0x82F6_3B78;
/// x^0, bits reversed.
const ONE: u32 = 0x8000_0000;

/// `POWERS[k]` is x^(8·2^k) modulo the polynomial.
const POWERS: [u32; 64] = {
    let mut powers = [0; 64];
    // x^8.
    let mut power = ONE >> 8;
    let mut k = 0;
    while k < 64 {
        powers[k] = power;
        power = multiply(power, power);
        k += 1;
    }
    powers
};

/// The product of two polynomials of degree below 32, bits reversed, modulo the polynomial.
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut a, mut b, mut product) = (a, b, 0);
    while a != 0 {
        if a & ONE != 0 {
            product ^= b;
        }
        a <<= 1;
        b = (b >> 1) ^ if b & 1 == 1 { POLYNOMIAL } else { 0 };
    }
    product
}

/// What a piece with this CRC adds to the CRC of a file in which `after` bytes follow it.
pub fn moved(crc: u32, after: u64) -> u32 {
    let mut crc = crc;
    for (k, power) in POWERS.iter().enumerate() {
        if after >> k & 1 == 1 {
            crc = multiply(crc, *power);
        }
    }
    crc
}

/// The CRC of `len` zero bytes.
pub fn of_zeros(len: u64) -> u32 {
    // From the start value, which zeros only move, to the final inversion.
    !moved(u32::MAX, len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros() {
        for len in [0, 1, 2, 7, 8, 255, 8192, 100_000, 1 << 20] {
            assert_eq!(of_zeros(len), crc32c::crc32c(&vec![0; len as usize]), "{len}");
        }
        // Longer than memory: in two parts.
        let (a, b) = (5 << 40, (1 << 33) + 77);
        assert_eq!(moved(of_zeros(a), b) ^ of_zeros(b), of_zeros(a + b));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_in_any_order_give_the_whole(
            content in proptest::collection::vec(any::<u8>(), 0..3000),
            cuts in proptest::collection::vec(0usize..3000, 0..8),
        ) {
            let len = content.len();
            let mut borders: Vec<usize> = cuts.into_iter().map(|c| c.min(len)).chain([0, len]).collect();
            borders.sort_unstable();
            let mut crc = 0;
            for pair in borders.windows(2).rev() {
                crc ^= moved(crc32c::crc32c(&content[pair[0]..pair[1]]), (len - pair[1]) as u64);
            }
            prop_assert_eq!(crc, crc32c::crc32c(&content));
        }
    }
}
