//! What the restored server is told.

use super::*;
use crate::pg::Lsn;
use crate::pg::xact::PgTime;

fn landing(stop: Stop) -> Landing {
    Landing {
        last_commit: None,
        next_commit: None,
        commits: 0,
        replayed: Lsn(0x300),
        last_record: Lsn(0x2F0),
        needed: Lsn(0x310),
        timeline: TimelineId(10),
        stop,
        missed: Vec::new(),
        missed_count: 0,
        looked: Lsn(0x300),
        tablespaces: Vec::new(),
        rolled_back: false,
        ended: None,
    }
}

fn parameters(max_connections: i32) -> Parameters {
    Parameters {
        max_connections,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 64,
        wal_level: 1,
    }
}

struct Case<'a> {
    target: Target,
    action: Action,
    stop: Stop,
    program: &'a str,
    connections: i32,
    keep_archiving: bool,
    newest: u32,
    upstream: Upstream,
    scratch: Option<Scratch>,
    version: MajorVersion,
}

fn time_case() -> Case<'static> {
    Case {
        target: Target::Time { time: PgTime(1_000_001), inclusive: false },
        action: Action::Promote,
        stop: Stop::Before { start: Lsn(0x300), end: Lsn(0x310) },
        program: "/usr/bin/walrecv",
        connections: 100,
        keep_archiving: false,
        newest: 10,
        upstream: Upstream::default(),
        scratch: None,
        version: MajorVersion::V17,
    }
}

fn run(case: &Case<'_>, main: &str, auto: &str) -> (String, Vec<Neutralised>) {
    run_with(case, Some(main), auto)
}

/// `None`: the backup has no postgresql.conf.
fn run_with(case: &Case<'_>, main: Option<&str>, auto: &str) -> (String, Vec<Neutralised>) {
    let written = written(case, main, auto);
    (String::from_utf8(written.auto_conf).unwrap(), written.neutralised)
}

fn raised_with(case: &Case<'_>, main: &str) -> Vec<Neutralised> {
    written(case, Some(main), "").raised
}

fn written(case: &Case<'_>, main: Option<&str>, auto: &str) -> Written {
    let landing = landing(case.stop);
    let wishes = Wishes {
        root: Path::new("/data"),
        target: &case.target,
        action: case.action,
        landing: &landing,
        timeline: TimelineId(10),
        newest: TimelineId(case.newest),
        program: Path::new(case.program),
        fetch_arguments: &[],
        version: Some(case.version),
        parameters: parameters(case.connections),
        keep_archiving: case.keep_archiving,
        keep_subscriptions: false,
        upstream: &case.upstream,
        scratch: case.scratch.as_ref(),
    };
    write(&wishes, main.map(str::as_bytes), Some(auto.as_bytes())).unwrap()
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn a_time_target_is_written_with_offset_and_microseconds() {
    let (text, _) = run(&time_case(), "", "");
    for line in [
        "restore_command = '/usr/bin/walrecv wal-fetch %f %p'",
        "recovery_end_command = 'rm -rf pg_wal/walrecv'",
        "recovery_target_time = '2000-01-01 00:00:01.000001+00'",
        "recovery_target_inclusive = off",
        "recovery_target_action = 'promote'",
        "recovery_target_timeline = '10'",
        "synchronous_standby_names = ''",
        "archive_mode = 'off'",
        "primary_conninfo = ''",
    ] {
        assert!(lines(&text).contains(&line), "{line} in\n{text}");
    }
    assert!(!text.contains("max_connections") && !text.contains("port"), "{text}");
}

#[test]
fn every_other_target_is_emptied_before_the_one_in_use() {
    let (text, _) = run(&time_case(), "", "recovery_target_xid = '7'\n");
    let at = |line: &str| lines(&text).iter().position(|l| *l == line).unwrap_or_else(|| panic!("{line} in\n{text}"));
    let used = at("recovery_target_time = '2000-01-01 00:00:01.000001+00'");
    for name in ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_xid"] {
        assert!(at(&format!("{name} = ''")) < used, "{name}");
    }
}

#[test]
fn the_end_of_wal_needs_a_target_only_where_the_server_shall_not_promote() {
    let latest = Case { target: Target::Latest, stop: Stop::EndOfWal, ..time_case() };
    let (text, _) = run(&latest, "", "");
    assert!(!text.contains("recovery_target_inclusive") && !text.contains("recovery_target_action"), "{text}");
    let (text, _) = run(&Case { action: Action::Pause, ..latest }, "", "");
    for line in ["recovery_target_lsn = '0/2F0'", "recovery_target_action = 'pause'", "hot_standby = on"] {
        assert!(lines(&text).contains(&line), "{line} in\n{text}");
    }
    let (text, _) = run(&Case { stop: Stop::Cut, ..time_case() }, "", "");
    assert!(text.contains("recovery_target_time = ''"), "the plan cuts, no time is set\n{text}");
}

#[test]
fn a_block_is_replaced_and_the_rest_stays_byte_for_byte() {
    let (first, _) = run(&time_case(), "", "# mine\nwork_mem = '1MB'");
    assert!(first.starts_with("# mine\nwork_mem = '1MB'\n# walrecv restore: begin\n"), "{first}");
    let (second, _) = run(&time_case(), "", &first);
    assert_eq!(first, second);
    let (third, _) = run(&time_case(), "", &format!("{first}jit = off\n"));
    assert!(third.starts_with("# mine\nwork_mem = '1MB'\njit = off\n# walrecv restore: begin\n"), "{third}");
    assert_eq!(third.matches(BEGIN).count(), 1);
}

#[test]
fn strange_paths_reach_the_shell_unchanged() {
    let (text, _) = run(&Case { program: "/opt/100% sure/it's \\here/walrecv", ..time_case() }, "", "");
    let line = r"restore_command = '''/opt/100%% sure/it''\\''''s \\here/walrecv'' wal-fetch %f %p'";
    assert!(lines(&text).contains(&line), "{text}");
}

#[test]
fn parameters_are_raised_where_the_configuration_is_lower_or_unclear() {
    let high = Case { connections: 500, ..time_case() };
    let raised = |main: &str, auto: &str| run(&high, main, auto).0.contains("\nmax_connections = 500\n");
    assert!(raised("", ""), "default is 100");
    assert!(raised("max_connections = 400 # many\n", ""));
    assert!(!raised("max_connections = 500\n", ""));
    assert!(!raised("max_connections 600\n", ""));
    assert!(raised("max_connections = 600\n", "max_connections = '200'\n"), "the last one counts");
    assert!(raised("max_connections = 600\ninclude_dir = 'conf.d'\n", ""));
    assert!(raised("#max_connections = 600\n", ""));
    // Where the file that decides is not in the backup, the value that suffices is set, PostgreSQL's default too.
    let elsewhere = |main: Option<&str>, auto: &str| {
        let text = run_with(&time_case(), main, auto).0;
        ["\nmax_connections = 100\n", "\nmax_locks_per_transaction = 64\n"].map(|line| text.contains(line))
    };
    assert_eq!(elsewhere(None, ""), [true, true]);
    assert_eq!(elsewhere(Some("include 'more.conf'\n"), ""), [true, true]);
    assert_eq!(elsewhere(None, "max_connections = 300\n"), [false, true], "postgresql.auto.conf is read last");
    assert_eq!(elsewhere(Some(""), ""), [false, false]);
    // What already stands there as high is no value that was raised: what decides is not here.
    let wishes = time_case();
    let told = raised_with(&wishes, "max_connections = 100\ninclude 'more.conf'\n");
    assert_eq!(told.iter().find(|one| one.setting == "max_connections").expect("told").was, ELSEWHERE);
}

#[test]
fn what_production_had_is_told() {
    let main = "synchronous_standby_names = 'ANY 1 (walrecv, s2)'\narchive_mode = on\nport = 5433\n";
    let (_, told) = run(&time_case(), main, "");
    let settings: Vec<_> = told.iter().map(|n| (n.setting.as_str(), n.was.as_str(), n.now.as_str())).collect();
    let sync = ("synchronous_standby_names", "ANY 1 (walrecv, s2)", "");
    let subscriptions = ("max_logical_replication_workers", "4", "0");
    assert_eq!(settings, [sync, ("archive_mode", "on", "off"), subscriptions]);
    let (text, told) = run(&Case { keep_archiving: true, ..time_case() }, main, "");
    assert_eq!(told.len(), 2);
    assert!(!text.contains("archive_mode"));
}

/// What production's configuration has for its own recoveries, or shares with servers beside it, would delay this one, or take away what is not its own.
#[test]
fn a_recovery_neither_waits_nor_tidies_up_for_production() {
    let main = "recovery_min_apply_delay = '4h'\narchive_cleanup_command = 'pg_archivecleanup /archive %r'\n\
        recovery_end_command = 'promote-elsewhere'\nprimary_conninfo = 'host=db1'\nprimary_slot_name = 's1'\n";
    let (text, told) = run(&time_case(), main, "");
    for line in [
        "recovery_min_apply_delay = '0'",
        "archive_cleanup_command = ''",
        "recovery_end_command = 'rm -rf pg_wal/walrecv'",
        "primary_conninfo = ''",
        "primary_slot_name = ''",
    ] {
        assert!(lines(&text).contains(&line), "{line} in\n{text}");
    }
    assert!(!text.contains("stats_temp_directory"), "a server of 15 would not start");
    let told: Vec<_> = told.iter().map(|n| n.setting.as_str()).collect();
    assert_eq!(
        told,
        [
            "recovery_end_command",
            "archive_cleanup_command",
            "recovery_min_apply_delay",
            "primary_conninfo",
            "primary_slot_name",
            "max_logical_replication_workers"
        ]
    );
    // A server that pauses would open, and delete the file. 16 and later would not start with the setting.
    let main = "promote_trigger_file = '/run/promote'\n";
    for version in MajorVersion::ALL {
        let (text, told) = run(&Case { version, ..time_case() }, main, "");
        let emptied = lines(&text).contains(&"promote_trigger_file = ''");
        let named = told.iter().any(|one| one.setting == "promote_trigger_file" && one.was == "/run/promote");
        assert_eq!((emptied, named), (version < MajorVersion::V16, version < MajorVersion::V16), "{version}");
    }
    let (text, told) = run(&time_case(), "stats_temp_directory = '/run/postgresql/13-main.pg_stat_tmp'\n", "");
    assert!(lines(&text).contains(&"stats_temp_directory = 'pg_stat_tmp'"), "{text}");
    assert!(told.iter().any(|n| n.setting == "stats_temp_directory"), "{told:?}");
}

#[test]
fn a_scratch_server_is_alone() {
    let scratch = Some(Scratch { directory: "/tmp/x".into(), port: 6000 });
    let (text, told) =
        run(&Case { scratch, keep_archiving: true, ..time_case() }, "port = 5433\nshared_buffers = 16MB\n", "");
    for line in [
        "archive_mode = 'off'",
        "max_logical_replication_workers = '0'",
        "listen_addresses = ''",
        "unix_socket_directories = '/tmp/x'",
        "port = '6000'",
        "hba_file = '/tmp/x/pg_hba.conf'",
        "lc_messages = 'C'",
        "shared_buffers = '128MB'",
        "huge_pages = 'off'",
        "cron.launch_active_jobs = 'off'",
        "cron.max_running_jobs = '0'",
        "event_triggers = 'off'",
    ] {
        assert!(lines(&text).contains(&line), "{line} in\n{text}");
    }
    // What only suits it is not called neutralised.
    assert_eq!(told.len(), 2);
    assert_eq!((told[1].setting.as_str(), told[1].was.as_str()), ("port", "5433"));
}

#[test]
fn a_path_with_a_line_break_is_refused() {
    let landing = landing(Stop::EndOfWal);
    let wishes = Wishes {
        root: Path::new("/data"),
        target: &Target::Latest,
        action: Action::Promote,
        landing: &landing,
        timeline: TimelineId(1),
        newest: TimelineId(1),
        program: Path::new("/a\nb"),
        fetch_arguments: &[],
        version: None,
        parameters: parameters(1),
        keep_archiving: false,
        keep_subscriptions: false,
        upstream: &Upstream::default(),
        scratch: None,
    };
    assert_eq!(write(&wishes, None, None).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn a_standby_goes_on_and_keeps_production_s_settings() {
    let upstream = Upstream { conninfo: "host=db1 password='it''s'".into(), slot: "s2".into() };
    let case = Case { action: Action::Follow, upstream, target: Target::Latest, stop: Stop::EndOfWal, ..time_case() };
    let main = "synchronous_standby_names = 'walrecv'\narchive_mode = on\nprimary_slot_name = 'other'\n\
        recovery_min_apply_delay = '1h'\narchive_cleanup_command = 'pg_archivecleanup /archive %r'\n";
    let (text, told) = run(&case, main, "recovery_target_time = 'x'\n");
    for line in [
        "primary_conninfo = 'host=db1 password=''it''''s'''",
        "primary_slot_name = 's2'",
        "recovery_target_timeline = 'latest'",
        "recovery_target_time = ''",
    ] {
        assert!(lines(&text).contains(&line), "{line} in\n{text}");
    }
    for kept in [
        "archive_mode",
        "synchronous_standby_names",
        "recovery_target_action",
        "max_logical",
        "recovery_min_apply_delay",
    ] {
        assert!(!text.contains(&format!("\n{kept}")), "{kept} in\n{text}");
    }
    let told: Vec<_> = told.iter().map(|n| (n.setting.as_str(), n.was.as_str(), n.now.as_str())).collect();
    let tidies = ("archive_cleanup_command", "pg_archivecleanup /archive %r", "");
    assert_eq!(told, [tidies, ("primary_slot_name", "other", "s2")]);
}

#[test]
fn a_standby_archives_no_segments_that_it_was_served() {
    let standby = Case { action: Action::Follow, ..time_case() };
    let (text, told) = run(&standby, "archive_mode = 'always'\n", "");
    assert!(lines(&text).contains(&"archive_mode = 'on'"), "{text}");
    assert_eq!(told.iter().map(|one| (one.was.as_str(), one.now.as_str())).collect::<Vec<_>>(), [("always", "on")]);
    let (text, _) = run(&standby, "archive_mode = on\n", "");
    assert!(!text.contains("archive_mode"), "{text}");
    // Where it may stand in a file that the backup does not have.
    for (main, auto) in [(None, ""), (Some("include_dir = 'conf.d'\n"), "")] {
        let (text, told) = run_with(&standby, main, auto);
        assert!(lines(&text).contains(&"archive_mode = 'off'"), "{text}");
        assert!(told.iter().any(|one| one.setting == "archive_mode" && one.now == "off"), "{told:?}");
        let (text, _) = run_with(&Case { keep_archiving: true, action: Action::Follow, ..time_case() }, main, auto);
        assert!(!text.contains("archive_mode"), "{text}");
    }
    let (text, _) = run_with(&standby, None, "archive_mode = on\n");
    assert!(!text.contains("archive_mode = 'off'"), "{text}");
}

#[test]
fn a_standby_follows_the_newest_timeline_unless_the_server_would_find_another_one() {
    let standby = |newest| Case { action: Action::Follow, newest, ..time_case() };
    let (text, _) = run(&standby(10), "", "");
    assert!(lines(&text).contains(&"recovery_target_timeline = 'latest'"), "{text}");
    for newest in [9, 11] {
        let (text, _) = run(&standby(newest), "", "");
        assert!(lines(&text).contains(&"recovery_target_timeline = '10'"), "{text}");
    }
}

#[test]
fn what_may_stand_in_files_that_are_not_here_is_told_and_passwords_are_not() {
    let settings =
        |main: &str| -> Vec<String> { run(&time_case(), main, "").1.into_iter().map(|one| one.setting).collect() };
    assert_eq!(settings("work_mem = '1MB'\n"), ["max_logical_replication_workers"]);
    let elsewhere = settings("include_dir = 'conf.d'\n");
    assert_eq!(elsewhere, ["synchronous_standby_names", "archive_mode", "max_logical_replication_workers"]);
    let debian = run_with(&time_case(), None, "").1.into_iter().map(|one| one.setting).collect::<Vec<_>>();
    assert_eq!(debian, elsewhere);
    for conninfo in ["host=a password=secret", "postgresql://repl:secret@db1/shop"] {
        let (_, told) = run(&time_case(), "", &format!("primary_conninfo = '{conninfo}'\n"));
        let said = format!("{told:?}");
        assert!(said.contains("primary_conninfo") && !said.contains("secret"), "{said}");
    }
}
