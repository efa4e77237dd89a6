//! Whole numbers in as few bytes as they need: seven bits a byte, lowest first, the high bit says that more follow.

use super::Malformed;

/// Appends `value`; at most ten bytes.
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number: the sign goes into the lowest bit, so that small ones stay short.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads what the functions above wrote; every error names the content being read.
pub struct Cursor<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { what, rest: bytes }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn bad(&self, problem: impl ToString) -> Malformed {
        Malformed::new(self.what, problem)
    }

    pub fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.rest.split_first().ok_or_else(|| self.bad("it ends early"))?;
        self.rest = rest;
        Ok(*first)
    }

    pub fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.bad("a number is longer than 64 bits"))
    }

    pub fn signed(&mut self) -> Result<i64, Malformed> {
        let value = self.number()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A number that fits 32 bits.
    pub fn small(&mut self) -> Result<u32, Malformed> {
        let value = self.number()?;
        u32::try_from(value).map_err(|_| self.bad(format!("{value} does not fit 32 bits")))
    }

    pub fn take(&mut self, len: u64) -> Result<&'a [u8], Malformed> {
        let short = || Malformed::new(self.what, "it ends early");
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(len).map_err(|_| short())?).ok_or_else(short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.number()?;
        self.take(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for value in [0, 1, 127, 128, 16383, 16384, u64::from(u32::MAX), i64::MAX as u64, u64::MAX - 1, u64::MAX] {
            let mut out = Vec::new();
            put(&mut out, value);
            put_signed(&mut out, value as i64);
            let mut cursor = Cursor::new("test", &out);
            assert_eq!(cursor.number(), Ok(value));
            assert_eq!(cursor.signed(), Ok(value as i64));
            assert!(cursor.is_empty());
        }
    }

    #[test]
    fn a_number_that_never_ends_is_refused() {
        assert!(Cursor::new("test", &[0xFF; 11]).number().is_err());
        assert!(Cursor::new("test", &[0x80, 0x80]).number().is_err());
        assert!(Cursor::new("test", &[5, 1, 2]).bytes().is_err());
    }
}
