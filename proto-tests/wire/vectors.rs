//! Transcripts of real servers, whole and cut, give the events that stand beside them.

use walrecv::pg::TimelineId;
use walrecv::wire::WireError;
use walrecv::wire::command::{self, Rows};

use super::replay::{play, whole};
use super::support::Seed;
use super::transcript;

#[test]
fn transcripts_of_real_servers_give_the_recorded_events() {
    for (name, turns, expected) in transcript::all() {
        let events = play(&name, &turns, whole).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(events.join("\n") + "\n", expected, "{name}");
        assert!(expected.lines().count() > 3, "{name}");
    }
}

#[test]
fn cut_at_every_byte_the_events_are_the_same() {
    for (name, turns, expected) in transcript::all() {
        let single = |bytes: &[u8]| bytes.iter().map(|b| vec![*b]).collect();
        let events = play(&name, &turns, single).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(events.join("\n") + "\n", expected, "{name}");
    }
}

#[test]
fn cut_at_random_the_events_are_the_same() {
    let mut seed = Seed::of_run();
    for (name, turns, expected) in transcript::all() {
        for _ in 0..10 {
            let largest = 1 + seed.below(2000);
            let random = |bytes: &[u8]| {
                let (mut pieces, mut rest) = (Vec::new(), bytes);
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at((1 + seed.below(largest) as usize).min(rest.len()));
                    pieces.push(piece.to_vec());
                    rest = after;
                }
                pieces
            };
            let events = play(&name, &turns, random).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(events.join("\n") + "\n", expected, "{name}");
        }
    }
}

#[test]
fn answers_are_read_into_their_types() {
    for (name, turns, _) in transcript::all().into_iter().filter(|(name, ..)| name.ends_with("-commands")) {
        let events = play(&name, &turns, whole).expect("events");
        let system = events.iter().find(|e| e.starts_with("answer [IDENTIFY_SYSTEM]")).expect("an identity");
        assert!(system.contains("b\"1\"") && system.contains("systemid"), "{system}");
    }
    // Answers that no server gives are refused by the command's name.
    let row = |values: &[Option<&'static str>]| Rows {
        columns: values.iter().map(|_| "c".to_owned()).collect(),
        rows: vec![values.iter().map(|v| v.map(|v| v.as_bytes().into())).collect()],
        tag: String::new(),
    };
    let refused = |error: WireError, text: &str| assert!(error.to_string().contains(text), "{error}");
    let identity = |values: &[Option<&'static str>]| command::identity(vec![row(values)]);
    assert!(identity(&[Some("7"), Some("1"), Some("0/1"), None]).is_ok());
    refused(identity(&[Some("7"), Some("0"), Some("0/1")]).expect_err("timeline 0"), "timeline 0");
    refused(identity(&[Some("-7"), Some("1"), Some("0/1")]).expect_err("a sign"), "column 1");
    refused(identity(&[Some("7"), Some("1"), Some("1")]).expect_err("no LSN"), "column 3");
    refused(identity(&[Some("7"), Some("1"), None]).expect_err("NULL"), "column 3 is NULL");
    refused(identity(&[Some("7"), Some("1")]).expect_err("two columns"), "at least 3 columns");
    refused(command::identity(vec![]).expect_err("nothing"), "expected one result, found 0");
    let history = |name| command::history_file(TimelineId(2), vec![row(&[Some(name), Some("1\t0/1\tx\n")])]);
    assert_eq!(history("00000002.history").expect("a file").content.as_ref(), b"1\t0/1\tx\n");
    refused(history("../../x").expect_err("another name"), "00000002.history");
    let slot = |values: &[Option<&'static str>]| command::slot(vec![row(values)]);
    assert_eq!(slot(&[None, None, None]), Ok(None));
    assert_eq!(slot(&[Some("logical"), None, None]), Ok(Some(Err("logical".to_owned()))));
    assert!(
        matches!(slot(&[Some("physical"), Some("0/0"), Some("0")]), Ok(Some(Ok(state))) if state.restart_lsn.is_none())
    );
}
