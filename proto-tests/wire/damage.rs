//! Damaged and random bytes: an error, or events of the same kinds up to where it stops; never a panic.

use proptest::prelude::*;
use walrecv::pg::MajorVersion;
use walrecv::wire::WireError;

use super::replay::Player;
use super::support::Seed;
use super::transcript::{self, Turn};

/// The first word of an event: its kind.
fn kind(event: &str) -> &str {
    event.split([' ', '(', '{']).next().unwrap_or_default()
}

/// Plays with byte `at` of the server's bytes changed by `flip`; the events, and whether it ended without an error.
fn play(version: MajorVersion, turns: &[Turn], at: usize, flip: u8) -> (Vec<String>, Result<(), WireError>) {
    let mut player = Player::new(version);
    let mut passed = 0;
    for turn in turns {
        let mut bytes = turn.bytes().to_vec();
        match turn {
            Turn::Client(_) => player.client(&bytes),
            Turn::Server(_) => {
                if let Some(byte) = at.checked_sub(passed).and_then(|at| bytes.get_mut(at)) {
                    *byte ^= flip;
                }
                passed += bytes.len();
                if let Err(error) = player.server(&bytes) {
                    return (player.events, Err(error));
                }
                // Past the damage a machine may wait for a message that will never be whole; the client would have waited, too.
                if passed > at && player.is_waiting() {
                    return (player.events, Ok(()));
                }
            }
        }
    }
    (player.events, Ok(()))
}

#[test]
fn every_damaged_byte_is_an_error_or_leaves_the_kinds_of_events() {
    let mut seed = Seed::of_run();
    for (name, turns, expected) in transcript::all() {
        let number = name.split('-').next().and_then(|v| v.parse().ok()).expect("a version");
        let version = MajorVersion::from_number(number).expect("a version");
        let kinds: Vec<&str> = expected.lines().map(kind).collect();
        let total: usize = turns.iter().filter(|t| matches!(t, Turn::Server(_))).map(|t| t.bytes().len()).sum();
        let (mut refused, mut damaged) = (0, 0);
        // A backup is mostly pages, of which the protocol knows nothing: every fifth byte of them will do.
        for at in (0..total).step_by(if name.ends_with("backup") { 5 } else { 1 }) {
            // The protocol has no checksums, so a changed length may by chance meet another message's beginning inside a page: any byte may
            // become any other without a panic, but the two fixed changes, tried on these very bytes, also keep the kinds of events.
            let _ = play(version, &turns, at, 1 + seed.below(255) as u8);
            for flip in [1, 0x80] {
                let (events, outcome) = play(version, &turns, at, flip);
                damaged += 1;
                refused += u32::from(outcome.is_err());
                let found: Vec<&str> = events.iter().map(|event| kind(event)).collect();
                // What a damaged error says is another error; what a damaged notice says is nothing.
                assert!(kinds.starts_with(&found), "{name}: byte {at} flipped by {flip:#04x}: {found:?}");
                if outcome.is_ok() && found.len() == kinds.len() && !name.ends_with("backup") {
                    wal_is_continuous(&events);
                }
            }
        }
        assert!(refused * 25 > damaged, "{name}: {refused} of {damaged} refused");
    }
}

/// `wal START + LENGTH …` events of one stream follow each other.
fn wal_is_continuous(events: &[String]) {
    let mut expected: Option<u64> = None;
    for event in events {
        let words: Vec<&str> = event.split(' ').collect();
        match words[..] {
            ["wal", start, "+", length, ..] => {
                let start = start.parse::<walrecv::pg::Lsn>().expect("an LSN").0;
                assert!(expected.is_none_or(|e| e == start), "{event}");
                expected = Some(start + length.parse::<u64>().expect("a length"));
            }
            [">", ..] => expected = None,
            _ => {}
        }
    }
}

/// Well-formed headers with any content reach deeper than plain noise.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let tag = proptest::sample::select(b"123ACDEGHIKNRSTVWZcdnstv".to_vec());
    let message = (tag, proptest::collection::vec(any::<u8>(), 0..60)).prop_map(|(tag, body)| {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(&body);
        bytes
    });
    let plain = proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![plain, proptest::collection::vec(message, 1..5).prop_map(|messages| messages.concat())]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn noise_never_panics(bytes in noise(), at in 0usize..4, scenario in 0usize..26) {
        let all = TRANSCRIPTS.with(|all| all[scenario].clone());
        let mut player = Player::new(all.0);
        for turn in all.1.iter().take(1 + 2 * at) {
            match turn {
                Turn::Client(bytes) => player.client(bytes),
                Turn::Server(bytes) => player.server(bytes).expect("a good transcript"),
            }
        }
        let _ = player.server(&bytes);
    }
}

thread_local! {
    static TRANSCRIPTS: Vec<(MajorVersion, Vec<Turn>)> = transcript::all().into_iter().map(|(name, turns, _)| {
        let number = name.split('-').next().and_then(|v| v.parse().ok()).expect("a version");
        (MajorVersion::from_number(number).expect("a version"), turns)
    }).collect();
}
