//! PostgreSQL's own `backup_manifest` (`backup_manifest.c`, `parse_manifest.c`): one entry per line, read as it arrives.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{Lsn, SystemIdentifier, TimelineId};

/// Longest line that is accepted: a path of 1024 bytes in hexadecimal digits and everything around it is far below.
const LINE: usize = 64 << 10;

/// How a file's content is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    None,
    Crc32c(u32),
    /// SHA-2 of some length, not computed here: algorithm and digits as they stand.
    Other {
        algorithm: String,
        digits: String,
    },
}

/// What a manifest says, in this order: version, system (17+), files, WAL ranges, end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestItem {
    Version(u32),
    System(SystemIdentifier),
    File {
        path: Vec<u8>,
        size: u64,
        checksum: Checksum,
    },
    WalRange {
        timeline: TimelineId,
        start: Lsn,
        end: Lsn,
    },
    /// The manifest's own checksum was right, and nothing follows.
    End,
}

/// Why a manifest was refused, and in which line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("backup_manifest, line {line}: {problem}")]
pub struct BadManifest {
    pub line: u64,
    pub problem: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Version,
    SystemOrFiles { system: bool },
    File { more: bool },
    WalRange { more: bool },
    WalRanges,
    Checksum,
    Nothing,
}

/// Takes the manifest in pieces of any size. Holds one line.
#[derive(Debug)]
pub struct ManifestReader {
    line: Vec<u8>,
    number: u64,
    expect: Expect,
    hash: Sha256,
}

impl Default for ManifestReader {
    fn default() -> ManifestReader {
        ManifestReader::new()
    }
}

impl ManifestReader {
    pub fn new() -> ManifestReader {
        ManifestReader { line: Vec::new(), number: 1, expect: Expect::Version, hash: Sha256::new() }
    }

    /// Reads on and hands every item to `take`; an error of `take` is returned as the manifest's.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        take: &mut dyn FnMut(ManifestItem) -> Result<(), String>,
    ) -> Result<(), BadManifest> {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let (line, rest) = bytes.split_at(end + 1);
            self.line.extend_from_slice(line);
            bytes = rest;
            let line = std::mem::take(&mut self.line);
            let item = self.read(&line).map_err(|problem| self.bad(problem))?;
            if let Some(item) = item {
                take(item).map_err(|problem| self.bad(problem))?;
            }
            self.number += 1;
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() > LINE {
            return Err(self.bad("line is too long"));
        }
        Ok(())
    }

    /// States that the manifest's bytes have ended: an error unless its last line was there.
    pub fn finish(&self) -> Result<(), BadManifest> {
        if self.expect == Expect::Nothing && self.line.is_empty() {
            return Ok(());
        }
        Err(self.bad("the manifest ends early"))
    }

    fn bad(&self, problem: impl Into<String>) -> BadManifest {
        BadManifest { line: self.number, problem: problem.into() }
    }

    /// One line, its newline included.
    fn read(&mut self, line: &[u8]) -> Result<Option<ManifestItem>, String> {
        let text = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?;
        let text = text.strip_suffix('\n').unwrap_or(text);
        if self.expect != Expect::Checksum {
            self.hash.update(line);
        }
        let unexpected = || Err(format!("unexpected text {text:?}"));
        match self.expect {
            Expect::Version => self.version(text),
            Expect::SystemOrFiles { system } => match text {
                "\"Files\": [" => self.then(Expect::File { more: true }, None),
                _ if system => self.system(text),
                _ => unexpected(),
            },
            Expect::File { more: false } if text == "]," => self.then(Expect::WalRanges, None),
            Expect::File { more: true } => {
                let (item, more) = entry::<FileLine>(text)?;
                let item = item.item()?;
                self.then(Expect::File { more }, Some(item))
            }
            Expect::WalRanges if text == "\"WAL-Ranges\": [" => self.then(Expect::WalRange { more: true }, None),
            Expect::WalRange { more: false } if text == "]," => self.then(Expect::Checksum, None),
            Expect::WalRange { more: true } => {
                let (range, more) = entry::<WalLine>(text)?;
                let item = range.item()?;
                self.then(Expect::WalRange { more }, Some(item))
            }
            Expect::Checksum => self.checksum(text),
            _ => unexpected(),
        }
    }

    fn then(&mut self, next: Expect, item: Option<ManifestItem>) -> Result<Option<ManifestItem>, String> {
        self.expect = next;
        Ok(item)
    }

    fn version(&mut self, text: &str) -> Result<Option<ManifestItem>, String> {
        let number = text
            .strip_prefix("{ \"PostgreSQL-Backup-Manifest-Version\": ")
            .and_then(|t| t.strip_suffix(','))
            .and_then(|n| n.parse::<u32>().ok())
            .ok_or_else(|| format!("expected the manifest's version, found {text:?}"))?;
        if !(1..=2).contains(&number) {
            return Err(format!("manifest version {number} is not supported (expected 1 or 2)"));
        }
        self.then(Expect::SystemOrFiles { system: number == 2 }, Some(ManifestItem::Version(number)))
    }

    fn system(&mut self, text: &str) -> Result<Option<ManifestItem>, String> {
        let number = text
            .strip_prefix("\"System-Identifier\": ")
            .and_then(|t| t.strip_suffix(','))
            .and_then(|n| n.parse::<u64>().ok())
            .ok_or_else(|| format!("expected the system identifier, found {text:?}"))?;
        self.then(Expect::SystemOrFiles { system: false }, Some(ManifestItem::System(SystemIdentifier(number))))
    }

    fn checksum(&mut self, text: &str) -> Result<Option<ManifestItem>, String> {
        let stated = text
            .strip_prefix("\"Manifest-Checksum\": \"")
            .and_then(|t| t.strip_suffix("\"}"))
            .ok_or_else(|| format!("expected the manifest's checksum, found {text:?}"))?;
        let computed: String = self.hash.clone().finalize().iter().map(|b| format!("{b:02x}")).collect();
        if stated != computed {
            return Err(format!("the manifest's SHA-256 is {computed}, its last line says {stated}"));
        }
        self.then(Expect::Nothing, Some(ManifestItem::End))
    }
}

/// A line of a list: an object, and whether a comma says that another follows.
fn entry<T: DeserializeOwned>(text: &str) -> Result<(T, bool), String> {
    let (object, more) = text.strip_suffix(',').map_or((text, false), |object| (object, true));
    serde_json::from_str(object).map(|value| (value, more)).map_err(|e| e.to_string())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLine {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Last-Modified")]
    _modified: String,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    digits: Option<String>,
}

impl FileLine {
    fn item(self) -> Result<ManifestItem, String> {
        let path = match (self.path, self.encoded_path) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(digits)) => {
                hex(&digits).ok_or_else(|| format!("Encoded-Path {digits:?} is not hexadecimal"))?
            }
            _ => return Err("expected either Path or Encoded-Path".to_owned()),
        };
        let checksum = match (self.algorithm, self.digits) {
            (None, None) => Checksum::None,
            (Some(algorithm), Some(digits)) if algorithm == "CRC32C" => {
                // The digits are the number's bytes in the server's memory: lowest first on the machines that are supported.
                let bytes: Option<[u8; 4]> = hex(&digits).and_then(|b| b.try_into().ok());
                Checksum::Crc32c(bytes.map(u32::from_le_bytes).ok_or_else(|| format!("CRC-32C {digits:?}"))?)
            }
            (Some(algorithm), Some(digits)) if algorithm.starts_with("SHA") => Checksum::Other { algorithm, digits },
            (algorithm, digits) => return Err(format!("impossible checksum {algorithm:?} {digits:?}")),
        };
        Ok(ManifestItem::File { path, size: self.size, checksum })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WalLine {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl WalLine {
    fn item(self) -> Result<ManifestItem, String> {
        let lsn = |text: &str| text.parse::<Lsn>().map_err(|e| e.to_string());
        let (start, end) = (lsn(&self.start)?, lsn(&self.end)?);
        if self.timeline == 0 || start > end {
            return Err(format!("impossible WAL range {start} to {end} on timeline {}", self.timeline));
        }
        Ok(ManifestItem::WalRange { timeline: TimelineId(self.timeline), start, end })
    }
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    digits.as_bytes().chunks(2).map(|p| Some(digit(*p.first()?)? << 4 | digit(*p.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest as the server writes it, with its checksum.
    fn manifest(version: u32, files: &[&str]) -> String {
        let mut text = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n");
        if version == 2 {
            text += "\"System-Identifier\": 18446744073709551615,\n";
        }
        text += "\"Files\": [\n";
        text += &files.join(",\n");
        text += "\n],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";
        let sum: String = Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        text + &format!("\"Manifest-Checksum\": \"{sum}\"}}\n")
    }

    const FILES: [&str; 3] = [
        "{ \"Path\": \"backup_label\", \"Size\": 227, \"Last-Modified\": \"2026-01-31 02:00:00 GMT\", \
         \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"01020304\" }",
        "{ \"Encoded-Path\": \"636166e9\", \"Size\": 0, \"Last-Modified\": \"2026-01-31 02:00:00 GMT\" }",
        "{ \"Path\": \"base/5/1259\", \"Size\": 8192, \"Last-Modified\": \"2026-01-31 02:00:00 GMT\", \
         \"Checksum-Algorithm\": \"SHA256\", \"Checksum\": \"00ff\" }",
    ];

    fn read(bytes: &[u8], step: usize) -> Result<Vec<ManifestItem>, BadManifest> {
        let (mut reader, mut items) = (ManifestReader::new(), Vec::new());
        for piece in bytes.chunks(step) {
            reader.push(piece, &mut |item| {
                items.push(item);
                Ok(())
            })?;
        }
        reader.finish().map(|()| items)
    }

    #[test]
    fn says_everything_in_pieces_of_every_size() {
        let text = manifest(2, &FILES);
        let items = read(text.as_bytes(), 1 << 20).unwrap();
        assert_eq!(items[0], ManifestItem::Version(2));
        assert_eq!(items[1], ManifestItem::System(SystemIdentifier(u64::MAX)));
        let label =
            ManifestItem::File { path: b"backup_label".to_vec(), size: 227, checksum: Checksum::Crc32c(0x0403_0201) };
        assert_eq!(items[2], label);
        assert_eq!(items[3], ManifestItem::File { path: b"caf\xe9".to_vec(), size: 0, checksum: Checksum::None });
        let range = ManifestItem::WalRange { timeline: TimelineId(1), start: Lsn(0x2000028), end: Lsn(0x2000100) };
        assert_eq!(items[5], range);
        assert_eq!(items[6..], [ManifestItem::End]);
        for step in [1, 2, 13, 100] {
            assert_eq!(read(text.as_bytes(), step).unwrap(), items);
        }
        assert_eq!(read(manifest(1, &FILES).as_bytes(), 7).unwrap().len(), 6);
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_refused() {
        let text = manifest(2, &FILES);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(read(&bytes, 1 << 20).is_err(), "byte {at}");
            assert!(read(&text.as_bytes()[..at], 1 << 20).is_err(), "cut at {at}");
        }
        assert!(read(format!("{text}\n").as_bytes(), 1 << 20).is_err(), "something follows");
        assert!(read(manifest(1, &FILES).replace(": 1,", ": 3,").as_bytes(), 1 << 20).is_err());
    }
}
