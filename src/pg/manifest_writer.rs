//! Writing a `backup_manifest`, as the server does (`backup_manifest.c`): for a data directory that no server has sent in this form.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::xact::PgTime;
use super::{Lsn, MajorVersion, SystemIdentifier, TimelineId};

/// One file of the data directory.
#[derive(Clone, Copy, Debug)]
pub struct ManifestFile<'a> {
    /// Relative to the data directory, tablespaces under `pg_tblspc/<oid>/`.
    pub path: &'a [u8],
    pub size: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// CRC-32C of the content.
    pub crc: u32,
}

/// Makes the manifest's text piece by piece: files, then WAL ranges, then the end. Memory: nothing but the running checksum.
#[derive(Debug)]
pub struct ManifestWriter {
    hash: Sha256,
    files: u64,
    ranges: u64,
}

impl ManifestWriter {
    /// The beginning of the manifest of a server of this version, and the writer of the rest.
    pub fn begin(version: MajorVersion, system: SystemIdentifier) -> (ManifestWriter, Vec<u8>) {
        let mut writer = ManifestWriter { hash: Sha256::new(), files: 0, ranges: 0 };
        let text = match version >= MajorVersion::V17 {
            true => {
                format!("{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {system},\n\"Files\": [")
            }
            false => "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [".to_owned(),
        };
        let text = writer.out(text);
        (writer, text)
    }

    /// The line of a file. All files come before the first range.
    pub fn file(&mut self, file: &ManifestFile<'_>) -> Vec<u8> {
        let mut text = String::from(if self.files == 0 { "\n{ " } else { ",\n{ " });
        self.files += 1;
        match std::str::from_utf8(file.path) {
            Ok(path) => {
                text.push_str("\"Path\": ");
                escape(path, &mut text);
            }
            Err(_) => {
                let _ = write!(text, "\"Encoded-Path\": \"{}\"", hex(file.path));
            }
        }
        let time = PgTime::from_unix_micros(file.mtime.saturating_mul(1_000_000)).to_string();
        // Digits are the number's bytes in the memory of the machines that are supported: lowest first.
        let crc = hex(&file.crc.to_le_bytes());
        let _ = write!(
            text,
            ", \"Size\": {}, \"Last-Modified\": \"{} GMT\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{crc}\" }}",
            file.size,
            time.get(..19).unwrap_or(&time)
        );
        self.out(text)
    }

    /// A range of WAL that recovery needs.
    pub fn wal_range(&mut self, timeline: TimelineId, start: Lsn, end: Lsn) -> Vec<u8> {
        let mut text = String::from(if self.ranges == 0 { "\n],\n\"WAL-Ranges\": [\n" } else { ",\n" });
        self.ranges += 1;
        let _ = write!(text, "{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}");
        self.out(text)
    }

    /// The end, with the manifest's own checksum.
    pub fn finish(mut self) -> Vec<u8> {
        let mut text = self.out("\n],\n".to_owned());
        let digits = hex(&self.hash.finalize());
        text.extend_from_slice(format!("\"Manifest-Checksum\": \"{digits}\"}}\n").as_bytes());
        text
    }

    fn out(&mut self, text: String) -> Vec<u8> {
        self.hash.update(text.as_bytes());
        text.into_bytes()
    }
}

/// A JSON string (`json.c:escape_json`).
fn escape(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{Checksum, ManifestItem, ManifestReader};
    use super::*;

    fn read(bytes: &[u8]) -> Vec<ManifestItem> {
        let (mut reader, mut items) = (ManifestReader::new(), Vec::new());
        let mut keep = |item| {
            items.push(item);
            Ok(())
        };
        reader.push(bytes, &mut keep).unwrap();
        reader.finish().unwrap();
        items
    }

    #[test]
    fn what_is_written_is_read_back() {
        let paths: [&[u8]; 3] = [b"base/1/1259", b"caf\xe9", b"a \"quoted\" \\ name\n\x01\xc3\xa9"];
        for (version, number) in [(MajorVersion::V16, 1), (MajorVersion::V18, 2)] {
            let (mut writer, mut text) = ManifestWriter::begin(version, SystemIdentifier(u64::MAX));
            for (n, path) in paths.iter().enumerate() {
                let mtime = [0, 1_769_824_800, 951_782_400][n];
                text.extend(writer.file(&ManifestFile { path, size: n as u64, mtime, crc: 0x0403_0201 + n as u32 }));
            }
            text.extend(writer.wal_range(TimelineId(1), Lsn(0x1_0200_0028), Lsn(0x1_0300_0000)));
            text.extend(writer.wal_range(TimelineId(2), Lsn(0x1_0300_0000), Lsn(0x1_0300_0100)));
            text.extend(writer.finish());
            let items = read(&text);
            let mut expected = vec![ManifestItem::Version(number)];
            expected.extend((number == 2).then_some(ManifestItem::System(SystemIdentifier(u64::MAX))));
            for (n, path) in paths.iter().enumerate() {
                let checksum = Checksum::Crc32c(0x0403_0201 + n as u32);
                expected.push(ManifestItem::File { path: path.to_vec(), size: n as u64, checksum });
            }
            let range = |timeline, start, end| ManifestItem::WalRange { timeline: TimelineId(timeline), start, end };
            expected.push(range(1, Lsn(0x1_0200_0028), Lsn(0x1_0300_0000)));
            expected.push(range(2, Lsn(0x1_0300_0000), Lsn(0x1_0300_0100)));
            expected.push(ManifestItem::End);
            assert_eq!(items, expected);
            let text = String::from_utf8(text).unwrap();
            let line = "{ \"Path\": \"base/1/1259\", \"Size\": 0, \"Last-Modified\": \"1970-01-01 00:00:00 GMT\", \
                        \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"01020304\" },\n";
            assert!(text.contains(line), "{text}");
            assert!(text.contains("{ \"Encoded-Path\": \"636166e9\", ") && text.contains("2000-02-29 00:00:00 GMT"));
        }
    }
}
