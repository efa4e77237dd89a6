//! What the server's certificate says: names, dates, and the hash that binds a login to it.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::asn1::{
    AnyRef, Ia5StringRef, ObjectIdentifier, PrintableStringRef, TeletexStringRef, Utf8StringRef,
};
use x509_cert::der::{Decode, Encode, Tag, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// A certificate that could be read.
pub(super) struct Read {
    parsed: Certificate,
    der: Vec<u8>,
}

impl Read {
    pub(super) fn new(der: &[u8]) -> Result<Read, String> {
        let parsed = Certificate::from_der(der).map_err(|error| error.to_string())?;
        Ok(Read { parsed, der: der.to_vec() })
    }

    /// SubjectPublicKeyInfo, as DER.
    pub(super) fn public_key(&self) -> Option<Vec<u8>> {
        self.parsed.tbs_certificate.subject_public_key_info.to_der().ok()
    }

    /// Whether `now` (seconds since 1970) is between its dates: `None` when it is, else what is wrong.
    pub(super) fn date_problem(&self, now: u64) -> Option<&'static str> {
        let validity = &self.parsed.tbs_certificate.validity;
        let seconds = |time: &x509_cert::time::Time| time.to_unix_duration().as_secs();
        match (now < seconds(&validity.not_before), now > seconds(&validity.not_after)) {
            (true, _) => Some("is not valid yet"),
            (_, true) => Some("has expired"),
            _ => None,
        }
    }

    /// The names for which it was issued: DNS names, addresses, and the common name.
    fn names(&self) -> Names {
        let mut names = Names::default();
        let extension = self.parsed.tbs_certificate.get::<SubjectAltName>().ok().flatten();
        for name in extension.iter().flat_map(|(_, alternatives)| &alternatives.0) {
            match name {
                GeneralName::DnsName(name) => names.dns.push(name.as_str().to_owned()),
                GeneralName::IpAddress(octets) => names.ip.push(octets.as_bytes().to_vec()),
                _ => {}
            }
        }
        let mut attributes = self.parsed.tbs_certificate.subject.0.iter().flat_map(|set| set.0.iter());
        let common = attributes.rfind(|a| a.oid == COMMON_NAME);
        names.common = common.and_then(|attribute| text(AnyRef::from(&attribute.value)));
        names
    }

    /// Whether it was issued for `host` (`fe-secure-common.c:pq_verify_peer_name_matches_certificate`): an alternative name of the host's kind
    /// decides; only where there is none of that kind the common name does.
    pub(super) fn is_for(&self, host: &str) -> bool {
        let names = self.names();
        if let Ok(address) = host.parse::<std::net::IpAddr>() {
            let octets = match address {
                std::net::IpAddr::V4(address) => address.octets().to_vec(),
                std::net::IpAddr::V6(address) => address.octets().to_vec(),
            };
            let exact = |name: &String| name == host;
            return names.ip.contains(&octets)
                || names.dns.iter().any(exact)
                || names.ip.is_empty() && names.common.as_ref().is_some_and(exact);
        }
        let matches = |name: &String| name_matches(name, host);
        names.dns.iter().any(matches) || names.dns.is_empty() && names.common.as_ref().is_some_and(matches)
    }

    /// For messages: the names that it has.
    pub(super) fn describe_names(&self) -> String {
        let names = self.names();
        let ip = names.ip.iter().filter_map(|octets| match octets.len() {
            4 => <[u8; 4]>::try_from(octets.as_slice()).ok().map(|o| std::net::IpAddr::from(o).to_string()),
            _ => <[u8; 16]>::try_from(octets.as_slice()).ok().map(|o| std::net::IpAddr::from(o).to_string()),
        });
        let all: Vec<String> = names.dns.iter().cloned().chain(ip).collect();
        match (all.is_empty(), names.common) {
            (false, _) => all.join(", "),
            (true, Some(common)) => common,
            (true, None) => "no name".to_owned(),
        }
    }

    /// `tls-server-end-point` (RFC 5929 4.1): the certificate's hash by the hash of its signature, with SHA-256 in place of MD5 and SHA-1.
    /// `None` where the signature algorithm names no hash (Ed25519), as in `be_tls_get_certificate_hash`.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        let algorithm = &self.parsed.signature_algorithm;
        let hash = match algorithm.oid {
            RSA_PSS => pss_hash(algorithm.parameters.as_ref().map(AnyRef::from)?)?,
            oid => SIGNATURES.iter().find(|(known, _)| *known == oid)?.1,
        };
        Some(match hash {
            Hash::Sha224 => Sha224::digest(&self.der).to_vec(),
            Hash::Sha256 => Sha256::digest(&self.der).to_vec(),
            Hash::Sha384 => Sha384::digest(&self.der).to_vec(),
            Hash::Sha512 => Sha512::digest(&self.der).to_vec(),
        })
    }
}

#[derive(Default)]
struct Names {
    dns: Vec<String>,
    ip: Vec<Vec<u8>>,
    common: Option<String>,
}

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

#[derive(Clone, Copy)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// Signature algorithms and the hash for the end point.
const SIGNATURES: [(ObjectIdentifier, Hash); 11] = [
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.4"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.14"), Hash::Sha224),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12"), Hash::Sha384),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13"), Hash::Sha512),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.1"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.1"), Hash::Sha224),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3"), Hash::Sha384),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4"), Hash::Sha512),
];

/// The hash in RSASSA-PSS-params (RFC 4055 3.1), whose first field, `[0]`, names it; SHA-1 where it is absent.
fn pss_hash(parameters: AnyRef<'_>) -> Option<Hash> {
    // 2.16.840.1.101.3.4.2.x, as DER, up to the last byte.
    const SHA2: [u8; 10] = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
    match parameters.value() {
        [0xA0, _, 0x30, _, rest @ ..] => match rest.strip_prefix(&SHA2)?.first()? {
            1 => Some(Hash::Sha256),
            2 => Some(Hash::Sha384),
            3 => Some(Hash::Sha512),
            4 => Some(Hash::Sha224),
            _ => None,
        },
        _ => Some(Hash::Sha256),
    }
}

fn text(value: AnyRef<'_>) -> Option<String> {
    match value.tag() {
        Tag::Utf8String => value.decode_as::<Utf8StringRef<'_>>().ok().map(|t| t.as_str().to_owned()),
        Tag::PrintableString => value.decode_as::<PrintableStringRef<'_>>().ok().map(|t| t.as_str().to_owned()),
        Tag::Ia5String => value.decode_as::<Ia5StringRef<'_>>().ok().map(|t| t.as_str().to_owned()),
        Tag::TeletexString => value.decode_as::<TeletexStringRef<'_>>().ok().map(|t| t.as_str().to_owned()),
        _ => None,
    }
}

/// Without regard to case; `*` stands for one whole first label, and never for a top-level name (`wildcard_certificate_match`).
fn name_matches(pattern: &str, host: &str) -> bool {
    if pattern.contains('\0') {
        return false;
    }
    match pattern.strip_prefix("*.") {
        None => pattern.eq_ignore_ascii_case(host),
        Some(parent) => match host.split_once('.') {
            Some((label, rest)) => !label.is_empty() && parent.contains('.') && rest.eq_ignore_ascii_case(parent),
            None => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_one_label() {
        assert!(name_matches("db1.example.com", "DB1.example.com"));
        assert!(name_matches("*.example.com", "db1.example.com"));
        for host in ["example.com", "a.b.example.com", ".example.com", "xexample.com"] {
            assert!(!name_matches("*.example.com", host), "{host}");
        }
        assert!(!name_matches("*.com", "example.com"));
        assert!(!name_matches("a*.example.com", "ab.example.com"));
    }

    fn made(names: &[&str], common: Option<&str>) -> Read {
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(common) = common {
            params.distinguished_name.push(rcgen::DnType::CommonName, common);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        Read::new(params.self_signed(&key).unwrap().der()).unwrap()
    }

    #[test]
    fn alternative_names_go_before_the_common_name() {
        let both = made(&["db1.example.com", "10.0.0.1"], Some("db2.example.com"));
        assert!(both.is_for("db1.example.com") && both.is_for("10.0.0.1"));
        assert!(!both.is_for("db2.example.com") && !both.is_for("10.0.0.2"));
        let common = made(&[], Some("db2.example.com"));
        assert!(common.is_for("db2.example.com") && !common.is_for("db1.example.com"));
        assert!(made(&["db1.example.com"], Some("10.0.0.1")).is_for("10.0.0.1"));
        assert!(!made(&[], None).is_for("db1"));
        assert_eq!(both.describe_names(), "db1.example.com, 10.0.0.1");
    }

    #[test]
    fn dates_and_end_point() {
        let read = made(&["a"], None);
        assert_eq!(read.date_problem(1_750_000_000), None);
        assert_eq!(read.date_problem(0), Some("is not valid yet"));
        assert_eq!(read.date_problem(u64::from(u32::MAX) * 100), Some("has expired"));
        // ecdsa-with-SHA256
        assert_eq!(read.end_point(), Some(Sha256::digest(&read.der).to_vec()));
    }

    #[test]
    fn damaged_certificates_are_refused_or_read_without_panic() {
        let der = made(&["db1.example.com", "10.0.0.1"], Some("x")).der;
        for at in 0..der.len() {
            for bit in [1, 0x80] {
                let mut damaged = der.clone();
                damaged[at] ^= bit;
                if let Ok(read) = Read::new(&damaged) {
                    let _ =
                        (read.is_for("db1.example.com"), read.end_point(), read.describe_names(), read.date_problem(1));
                }
            }
            assert!(Read::new(&der[..at]).is_err());
        }
    }
}
