//! How values stand in JSON: positions as PostgreSQL prints them, times as RFC 3339 in UTC, numbers above 2^53 and bytes as text.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::BackupId;

/// For `#[serde(with = "text::shown")]`: anything that prints and parses.
pub(super) mod shown {
    use super::*;

    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'d, T: FromStr<Err: Display>, D: Deserializer<'d>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Number types of `pg` that wrap one integer, stored as that integer.
macro_rules! number {
    ($name:ident, $type:ty, $inner:ty, $make:expr, $show:expr) => {
        pub(super) mod $name {
            use super::*;

            pub fn serialize<S: Serializer>(value: &$type, to: S) -> Result<S::Ok, S::Error> {
                let show: fn(&$type) -> $inner = $show;
                show(value).serialize(to)
            }

            pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<$type, D::Error> {
                let make: fn($inner) -> Option<$type> = $make;
                let found = <$inner>::deserialize(from)?;
                make(found.clone()).ok_or_else(|| D::Error::custom(format!("impossible value {found:?}")))
            }
        }
    };
}

number!(timeline, crate::pg::TimelineId, u32, |n| (n > 0).then_some(crate::pg::TimelineId(n)), |t| t.0);
number!(segment_size, crate::pg::SegmentSize, u64, crate::pg::SegmentSize::new, |s| s.bytes());
number!(system, crate::pg::SystemIdentifier, String, |text| text.parse().ok().map(crate::pg::SystemIdentifier), |s| s
    .to_string());
number!(backup_id, super::BackupId, String, |text| BackupId::parse(&text).ok(), |id| id.as_str().to_owned());

/// A backup's name, or null.
pub(super) mod backup_id_or_none {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<BackupId>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(BackupId::as_str).serialize(to)
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Option<BackupId>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| BackupId::parse(&text).map_err(D::Error::custom)).transpose()
    }
}

/// Several ids.
pub(super) mod backup_ids {
    use super::*;

    pub fn serialize<S: Serializer>(ids: &[BackupId], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(ids.iter().map(BackupId::as_str))
    }

    pub fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<BackupId>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| BackupId::parse(text).map_err(D::Error::custom)).collect()
    }
}

/// Bytes that are nearly always text: a JSON string where they are UTF-8, else `{"hex": "…"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Raw(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum RawForm {
    Text(String),
    Hex { hex: String },
}

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => to.serialize_str(text),
            Err(_) => RawForm::Hex { hex: self.0.iter().map(|b| format!("{b:02x}")).collect() }.serialize(to),
        }
    }
}

impl<'d> Deserialize<'d> for Raw {
    fn deserialize<D: Deserializer<'d>>(from: D) -> Result<Raw, D::Error> {
        match RawForm::deserialize(from)? {
            RawForm::Text(text) => Ok(Raw(text.into_bytes())),
            RawForm::Hex { hex } => {
                let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
                let pairs = hex.as_bytes().chunks(2).map(|p| Some(digit(*p.first()?)? << 4 | digit(*p.get(1)?)?));
                pairs.collect::<Option<_>>().map(Raw).ok_or_else(|| D::Error::custom("hex digits are not in pairs"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_whether_text_or_not() {
        for bytes in [&b""[..], b"START WAL LOCATION\n\"\\", b"caf\xe9", "café".as_bytes()] {
            let json = serde_json::to_string(&Raw(bytes.to_vec())).unwrap();
            assert_eq!(serde_json::from_str::<Raw>(&json).unwrap(), Raw(bytes.to_vec()), "{json}");
        }
        assert!(serde_json::from_str::<Raw>("{\"hex\":\"abc\"}").is_err());
    }
}
