//! A certificate authority and one server certificate, new for each server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::user::give_to_postgres;

/// Where they were written: the server's own files in its data directory, the authority's beside it, readable by all.
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
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let ca_cert = ca.self_signed(&ca_key).expect("sign an authority");
        let issuer = Issuer::new(ca, ca_key);

        let key = KeyPair::generate().expect("make a key");
        let names = vec!["localhost".to_string(), "127.0.0.1".to_string()];
        let mut params = CertificateParams::new(names).expect("parameters of a server");
        params.distinguished_name.push(DnType::CommonName, "localhost");
        let cert = params.signed_by(&key, &issuer).expect("sign a server");

        let made = Certificates {
            ca: data.with_file_name("ca.pem"),
            server_cert: data.join("server.pem"),
            server_key: data.join("server.key"),
        };
        write(&made.ca, &ca_cert.pem(), 0o644);
        write(&made.server_cert, &cert.pem(), 0o600);
        write(&made.server_key, &key.serialize_pem(), 0o600);
        made
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("write a certificate");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set the mode of a certificate");
    give_to_postgres(path);
}
