//! `synchronous_standby_names` and `synchronous_commit`: which commits wait for walrecv, and what is lost when. Computes, never asks.

use super::report::Report;
use crate::receive::sentinel;

/// How many of the listed standbys a commit waits for (`syncrep_gram.y`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    First(usize),
    Any(usize),
}

#[derive(Debug, PartialEq, Eq)]
struct Names {
    rule: Rule,
    members: Vec<String>,
}

/// `None` for an empty value.
fn parse(text: &str) -> Option<Names> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    let (head, inner) = match (text.find('('), text.rfind(')')) {
        (Some(open), Some(close)) if open < close => (text.get(..open)?.trim(), text.get(open + 1..close)?),
        _ => ("", text),
    };
    let words: Vec<String> = head.split_whitespace().map(str::to_ascii_lowercase).collect();
    let number = words.last().and_then(|word| word.parse().ok()).unwrap_or(1);
    let rule = match words.first().map(String::as_str) {
        Some("any") => Rule::Any(number),
        _ => Rule::First(number),
    };
    let plain = |name: &str| {
        let quoted = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
        quoted.map_or_else(|| name.to_owned(), |name| name.replace("\"\"", "\""))
    };
    Some(Names { rule, members: inner.split(',').map(|name| plain(name.trim())).collect() })
}

const TAIL: &str = "a promoted standby keeps every commit only if it first replays the archive's tail: give it restore_command = 'walrecv wal-fetch %f %p', \
    and promote it once its pg_last_wal_replay_lsn() has passed `durable` of `walrecv status`, or after a restart";

/// What the setting means for `walrecv`, the name under which it connects.
pub fn explain(text: &str, walrecv: &str, interval: std::time::Duration, report: &mut Report) {
    const CHECK: &str = "synchronous standby";
    if !sentinel::lists(text, walrecv) {
        let found = format!(
            "no commit waits for {walrecv} (synchronous_standby_names = '{text}'): while it keeps up, losing the server loses the last {interval:?} and one put"
        );
        return report.ok(CHECK, found);
    }
    if sentinel::by_star(text, walrecv) {
        return report.warn(
            CHECK,
            format!("synchronous_standby_names = '{text}' chooses {walrecv} by its '*'"),
            format!("commits may wait for the repository although nobody named it: name the standbys that shall count, such as ANY 1 ({walrecv}, s2)"),
        );
    }
    let Some(Names { rule, members }) = parse(text) else { return };
    let place = members.iter().position(|name| name.eq_ignore_ascii_case(walrecv)).unwrap_or(0);
    let count = members.len();
    match rule {
        Rule::First(number) if place >= number => report.ok(
            CHECK,
            format!("'{text}': {walrecv} stands in when a standby before it is away; until then the archive may lack the last {interval:?}"),
        ),
        Rule::Any(number) if number < count => {
            let found = format!("'{text}': any {number} of {count} let a commit go; commits wait for the repository when others are away");
            match number {
                1 => report.warn(CHECK, found, format!("a commit may be in the archive alone, or on a standby alone; {TAIL}")),
                _ => report.ok(CHECK, format!("{found}; a commit is on {number} of them")),
            }
        }
        Rule::First(number) | Rule::Any(number) if number >= count => report.warn(
            CHECK,
            format!("'{text}': commits wait for the repository, and for all {count} listed; the archive loses nothing"),
            match count {
                1 => format!(
                    "nobody stands in: while walrecv or the repository is away, every commit hangs; ANY 1 ({walrecv}, s2) goes on with the other. \
                     After a failover {TAIL}"
                ),
                _ => "nobody stands in: while one of them is away, every commit hangs; list one more standby, or require fewer".to_owned(),
            },
        ),
        Rule::First(1) => report.warn(
            CHECK,
            format!("'{text}': commits wait for the repository; the archive loses nothing, and the next in the list stands in when it is away"),
            TAIL,
        ),
        Rule::First(number) | Rule::Any(number) => report.ok(
            CHECK,
            format!(
                "'{text}': commits wait for the repository and for {} more; the archive loses nothing, and neither does a failover to one of these",
                number.saturating_sub(1)
            ),
        ),
    }
}

/// What `synchronous_commit` adds, where commits wait.
pub fn level(text: &str, listed: bool, report: &mut Report) {
    const CHECK: &str = "synchronous_commit";
    match text {
        _ if !listed => report.ok(CHECK, format!("{text}; no commit waits for walrecv")),
        "off" | "local" => report.warn(
            CHECK,
            format!("{text}: commits do not wait for any standby, although walrecv is listed"),
            "set synchronous_commit = on, or remote_write, for the sessions whose commits must not be lost",
        ),
        "remote_write" => report.ok(
            CHECK,
            "remote_write: a commit returns when walrecv has checked its WAL and given it to its own host: it survives the loss of the server, not of both",
        ),
        "remote_apply" => report.warn(
            CHECK,
            "remote_apply: for walrecv the same as on; an archive applies nothing, so it promises visibility nowhere",
            "where a read on a standby must see the commit, list that standby and let commits wait for it",
        ),
        other => report.ok(CHECK, format!("{other}: a commit returns when its WAL is durable in the repository")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::report::Verdict;
    use super::*;

    fn explained(names: &str) -> (Verdict, String) {
        let mut report = Report::default();
        explain(names, "walrecv", Duration::from_secs(1), &mut report);
        let finding = &report.findings[0];
        (finding.verdict, format!("{} {}", finding.found, finding.advice.as_deref().unwrap_or_default()))
    }

    #[test]
    fn lists_are_read_as_the_server_reads_them() {
        let names =
            |rule, members: &[&str]| Some(Names { rule, members: members.iter().map(|m| (*m).to_owned()).collect() });
        assert_eq!(parse(" "), None);
        assert_eq!(parse("a, b"), names(Rule::First(1), &["a", "b"]));
        assert_eq!(parse("2 (a, \"b c\")"), names(Rule::First(2), &["a", "b c"]));
        assert_eq!(parse("FIRST 3(a,b,c)"), names(Rule::First(3), &["a", "b", "c"]));
        assert_eq!(parse("any 2 (a,b)"), names(Rule::Any(2), &["a", "b"]));
    }

    #[test]
    fn each_form_says_what_waits_and_what_is_lost() {
        for (names, verdict, words) in [
            ("", Verdict::Ok, "no commit waits"),
            ("s2", Verdict::Ok, "no commit waits"),
            ("*", Verdict::Warn, "by its '*'"),
            ("walrecv", Verdict::Warn, "every commit hangs"),
            ("FIRST 1 (walrecv, s2)", Verdict::Warn, "wal-fetch"),
            ("FIRST 1 (walrecv, s2)", Verdict::Warn, "promote it once its pg_last_wal_replay_lsn() has passed"),
            ("FIRST 1 (s2, WALRECV)", Verdict::Ok, "stands in"),
            ("FIRST 2 (walrecv, s2, s3)", Verdict::Ok, "neither does a failover"),
            ("FIRST 2 (walrecv, s2)", Verdict::Warn, "for all 2 listed"),
            ("ANY 1 (walrecv, s2)", Verdict::Warn, "in the archive alone"),
            ("ANY 1 (walrecv, s2)", Verdict::Warn, "has passed `durable` of `walrecv status`"),
            ("ANY 2 (walrecv, s2)", Verdict::Warn, "for all 2 listed"),
            ("ANY 2 (walrecv, s2, s3)", Verdict::Ok, "any 2 of 3"),
        ] {
            let (found, text) = explained(names);
            assert!(found == verdict && text.contains(words), "{names}: {found:?} {text}");
        }
    }

    #[test]
    fn each_level_of_synchronous_commit_has_its_meaning() {
        for (value, listed, verdict, words) in [
            ("on", false, Verdict::Ok, "no commit waits"),
            ("on", true, Verdict::Ok, "durable in the repository"),
            ("remote_write", true, Verdict::Ok, "to its own host"),
            ("remote_apply", true, Verdict::Warn, "visibility nowhere"),
            ("local", true, Verdict::Warn, "do not wait"),
        ] {
            let mut report = Report::default();
            level(value, listed, &mut report);
            let finding = &report.findings[0];
            assert!(finding.verdict == verdict && finding.found.contains(words), "{value}: {finding:?}");
        }
    }
}
