//! Recipients, the repository identity, data keys; and the `age` command as an independent implementation of both wrapped levels.

use std::io::Write;
use std::process::{Command, Stdio};

use walrecv::error::Kind;
use walrecv::keys::ring::{ReaderRing, WriterRing};
use walrecv::keys::setup::{self, Recipient, RepositoryKeys};
use walrecv::seal::header::ObjectKind;
use walrecv::seal::key::{ReaderKeys, RepositorySecret};
use walrecv::seal::opener::{OpenFailed, Opener};
use walrecv::seal::sealer::{Compression, Sealer};
use zeroize::Zeroizing;

use crate::support::*;

fn same(a: &RepositoryKeys, b: &RepositoryKeys) -> bool {
    a.identity == b.identity && a.public == b.public && a.secret.0 == b.secret.0
}

fn passphrase(text: &str) -> Recipient {
    Recipient::Passphrase(Zeroizing::new(text.to_owned()))
}

#[test]
fn a_recipient_opens_the_identity_and_the_secret() {
    let keys = setup::generate();
    let (private, public) = setup::generate_recipient();
    let (other_private, other_public) = setup::generate_recipient();
    let (name, file) = setup::wrap_for(&keys, &Recipient::Age(format!(" {public}\n"))).unwrap();
    assert!(name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit()), "{name}");
    assert_ne!(name, setup::wrap_for(&keys, &Recipient::Age(other_public)).unwrap().0);
    assert!(same(&setup::open_with_identity(&file, &private).unwrap(), &keys));
    let both = format!("# two\n\n{}{}", *other_private, *private);
    assert!(same(&setup::open_with_identity(&file, &both).unwrap(), &keys));

    let wrong = setup::open_with_identity(&file, &other_private).unwrap_err();
    assert_eq!(wrong.kind(), Kind::Key, "{wrong}");
    for bad in ["", "# nothing\n", "AGE-SECRET-KEY-1NOT\n"] {
        let error = setup::open_with_identity(&file, bad).unwrap_err();
        assert!(error.kind() == Kind::Key && !error.to_string().contains("1NOT"), "{error}");
    }
    for at in 0..file.len() {
        let mut damaged = file.to_vec();
        damaged[at] ^= 4;
        assert!(setup::open_with_identity(&damaged, &private).is_err(), "{at}");
        assert!(setup::open_with_identity(&file[..at], &private).is_err(), "{at}");
    }
}

#[test]
fn a_passphrase_stands_alone_in_its_file() {
    let keys = setup::generate();
    let (name, file) = setup::wrap_for(&keys, &passphrase("correct horse")).unwrap();
    assert_eq!(name, "passphrase");
    assert!(same(&setup::open_with_passphrase(&file, "correct horse").unwrap(), &keys));
    assert_eq!(setup::open_with_passphrase(&file, "wrong horse").unwrap_err().kind(), Kind::Key);
    assert_eq!(setup::open_with_identity(&file, &setup::generate_recipient().0).unwrap_err().kind(), Kind::Key);
}

#[test]
fn recipients_that_are_none_are_refused_and_secrets_not_repeated() {
    let keys = setup::generate();
    let (private, _) = setup::generate_recipient();
    let private = private.lines().last().unwrap().to_owned();
    for bad in ["", "age1", "ssh-ed25519 AAAA", &private] {
        let error = setup::wrap_for(&keys, &Recipient::Age(bad.to_owned())).unwrap_err();
        assert!(error.kind() == Kind::Key && error.advice().is_some());
        assert!(!error.to_string().contains("SECRET"), "{error}");
        let error = WriterRing::new(REPOSITORY, RepositorySecret(SECRET), Some(bad)).unwrap_err();
        assert!(error.kind() == Kind::Key && !error.to_string().contains("SECRET"), "{error}");
    }
    // A plugin that is not installed is named.
    let plugin = "age1nosuchplugin1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq";
    let error = setup::wrap_for(&keys, &Recipient::Age(plugin.into())).unwrap_err();
    assert_eq!(error.kind(), Kind::Key, "{error}");
}

#[test]
fn nothing_secret_is_printed() {
    let keys = setup::generate();
    let reader = ReaderRing::new(REPOSITORY, keys.secret.clone(), Some(&keys.identity)).unwrap();
    let writer = WriterRing::new(REPOSITORY, keys.secret.clone(), Some(&keys.public)).unwrap();
    let text = format!("{keys:?} {reader:?} {writer:?} {:?} {:?}", writer.fresh().unwrap(), passphrase("hunter2"));
    let digits: String = keys.secret.0.iter().map(|byte| format!("{byte}, ")).collect();
    for secret in [&keys.identity[..], "SECRET", "hunter2", &digits[..20]] {
        assert!(!text.contains(secret), "{text}");
    }
}

#[test]
fn secret_files_round_trip() {
    let secret = RepositorySecret(SECRET);
    let text = setup::secret_to_text(&secret);
    assert_eq!(setup::secret_from_text(&text).unwrap().0, SECRET);
    for bad in ["", "5e", &text.replace("5e5e", "5e5g"), &format!("{}{}", *text, *text)] {
        assert_eq!(setup::secret_from_text(bad).unwrap_err().kind(), Kind::Key);
    }
}

#[test]
fn rings_refuse_half_an_encryption() {
    let public = setup::generate().public;
    assert!(
        WriterRing::new(REPOSITORY, RepositorySecret::published(), None).unwrap().fresh().unwrap().wrapped.is_empty()
    );
    for (secret, identity) in [(RepositorySecret(SECRET), None), (RepositorySecret::published(), Some(&public[..]))] {
        let error = WriterRing::new(REPOSITORY, secret, identity).unwrap_err();
        assert!(error.kind() == Kind::Key && error.advice().is_some(), "{error}");
    }
    assert_eq!(ReaderRing::new(REPOSITORY, RepositorySecret(SECRET), Some("age1x")).unwrap_err().kind(), Kind::Key);
}

#[test]
fn a_writer_seals_what_only_the_identity_opens() {
    let keys = setup::generate();
    let ring = WriterRing::new(REPOSITORY, keys.secret.clone(), Some(&keys.public)).unwrap();
    let (first, second) = (ring.fresh().unwrap(), ring.fresh().unwrap());
    assert_ne!(first.data_key.0, second.data_key.0);
    assert_ne!(first.wrapped, second.wrapped);
    let mut sealer = Sealer::new(&first, claims(ObjectKind::Segment), SALT, Compression::Lz4);
    sealer.push(b"content");
    let object = sealer.finish(b"summary").to_vec();

    let open = |secret: &RepositorySecret, identity: Option<&str>| {
        let ring = ReaderRing::new(REPOSITORY, secret.clone(), identity).unwrap();
        let mut out = Vec::new();
        Opener::new(&object, &claims(ObjectKind::Segment), &ring, true)?.content(&object, &mut out).map(|()| out)
    };
    assert_eq!(open(&keys.secret, Some(&keys.identity)).unwrap(), b"content");
    let other = setup::generate();
    for (secret, identity) in
        [(&keys.secret, None), (&keys.secret, Some(&other.identity)), (&other.secret, Some(&keys.identity))]
    {
        let refused = open(secret, identity.map(|text| text.as_str())).unwrap_err();
        assert!(matches!(refused, OpenFailed::Key(_)), "{refused:?}");
    }

    let reader = ReaderRing::new(REPOSITORY, keys.secret.clone(), Some(&keys.identity)).unwrap();
    for _ in 0..2 {
        assert_eq!(reader.unwrap_key(&first.wrapped).unwrap().0, first.data_key.0);
        assert_eq!(reader.unwrap_key(&second.wrapped).unwrap().0, second.data_key.0);
        assert!(reader.unwrap_key(&first.wrapped[1..]).is_err());
    }
}

/// What the `age` command makes of `input`, or `None` (said aloud) where it is not installed.
fn age(arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let spawned = Command::new("age").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            skipped(&format!("the age command cannot be run ({error}): apt-get install age"));
            return None;
        }
    };
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "age {arguments:?}: {}", output.status);
    Some(output.stdout)
}

#[test]
fn both_wrapped_levels_open_with_the_age_command() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let keys = setup::generate();
    let (private, public) = setup::generate_recipient();
    let (_, file) = setup::wrap_for(&keys, &Recipient::Age(public)).unwrap();
    std::fs::write(path("recipient.txt"), private.as_bytes()).unwrap();
    let Some(identity) = age(&["-d", "-i", &path("recipient.txt")], &file) else { return };
    let text = String::from_utf8(identity.clone()).unwrap();
    assert!(text.contains(keys.identity.as_str()) && text.contains(&"# repository secret: ".to_owned()));

    // The opened file is an identity file itself.
    std::fs::write(path("identity.txt"), &identity).unwrap();
    let ring = WriterRing::new(REPOSITORY, keys.secret.clone(), Some(&keys.public)).unwrap();
    let data = ring.fresh().unwrap();
    assert_eq!(age(&["-d", "-i", &path("identity.txt")], &data.wrapped).unwrap(), data.data_key.0);

    // And back: a file that age wrote for our recipient.
    let theirs = age(&["-r", &keys.public], &[7; 32]).unwrap();
    let reader = ReaderRing::new(REPOSITORY, keys.secret.clone(), Some(&keys.identity)).unwrap();
    assert_eq!(reader.unwrap_key(&theirs).unwrap().0, [7; 32]);
    let short = age(&["-r", &keys.public], &[7; 31]).unwrap();
    assert!(reader.unwrap_key(&short).unwrap_err().contains("31 bytes"));
}
