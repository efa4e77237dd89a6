//! A certificate authority, a server certificate, one for the user `postgres`, and revocation lists: new for each server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::user::give_to_postgres;

/// Where they were written: the server's own files in its data directory, the authority's beside it, readable by all. There are also `client.pem` and
/// `client.key`, and two revocation lists: `empty.crl`, and `server.crl` that names the server's certificate.
pub struct Certificates {
    pub ca: PathBuf,
    pub server_cert: PathBuf,
    pub server_key: PathBuf,
}

impl Certificates {
    pub fn write(data: &Path) -> Certificates {
        let ca_key = KeyPair::generate().expect("make a key");
        let mut ca = CertificateParams::new(Vec::<String>::new()).expect("parameters of an authority");
        ca.distinguished_name.push(DnType::CommonName, "walrecv tests: authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
        let ca_cert = ca.self_signed(&ca_key).expect("sign an authority");
        let issuer = Issuer::new(ca, ca_key);

        let key = KeyPair::generate().expect("make a key");
        let names = vec!["localhost".to_string(), "127.0.0.1".to_string(), "::1".to_string()];
        let mut params = CertificateParams::new(names).expect("parameters of a server");
        params.distinguished_name.push(DnType::CommonName, "localhost");
        params.serial_number = Some(SerialNumber::from(SERVER_SERIAL));
        let cert = params.signed_by(&key, &issuer).expect("sign a server");
        let client_key = KeyPair::generate().expect("make a key");
        let mut client = CertificateParams::new(Vec::<String>::new()).expect("parameters of a client");
        client.distinguished_name.push(DnType::CommonName, "postgres");
        let client = client.signed_by(&client_key, &issuer).expect("sign a client");

        let made = Certificates {
            ca: data.with_file_name("ca.pem"),
            server_cert: data.join("server.pem"),
            server_key: data.join("server.key"),
        };
        for (name, text, mode) in [
            ("client.pem", client.pem(), 0o644),
            ("client.key", client_key.serialize_pem(), 0o600),
            ("empty.crl", revocation_list(&issuer, &[]), 0o644),
            ("server.crl", revocation_list(&issuer, &[SERVER_SERIAL]), 0o644),
        ] {
            write(&data.with_file_name(name), &text, mode);
        }
        write(&made.ca, &ca_cert.pem(), 0o644);
        write(&made.server_cert, &cert.pem(), 0o600);
        write(&made.server_key, &key.serialize_pem(), 0o600);
        made
    }
}

const SERVER_SERIAL: u64 = 4711;

fn revocation_list(issuer: &Issuer<'_, KeyPair>, revoked: &[u64]) -> String {
    let revoke = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2090, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(revoke).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).expect("sign a revocation list").pem().expect("PEM")
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("write a certificate");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set the mode of a certificate");
    give_to_postgres(path);
}
