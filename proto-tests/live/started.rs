//! A restored server that is started: whatever its directory is called, whatever it does at its target, it is compared with the plan.

use std::path::Path;
use std::time::Duration;

use walrecv::pg::MajorVersion;
use walrecv::restore::{Action, Options, Prepared, Target};

use super::restore::{Story, numbers, time, versions};
use crate::support::{Server, TempDir};

/// A shell reads none of the path.
#[test]
fn a_data_directory_may_be_called_anything() {
    let version = *versions().first().expect("a server");
    let mut story = Story::new(Server::start(version));
    story.backup();
    story.write(3);
    story.archive_and_die();
    let prepared = story.prepare(Target::Latest).expect("a plan");
    let pgdata = story.places.join("it's $HOME `id` \\ \"100%\"");
    let options = Options { pgdata, ..story.options("odd") };
    story.restore(&prepared, &options).expect("a restore");
    let copy = story.start(&prepared, &options).unwrap_or_else(|e| panic!("{e}, {:?}", e.advice()));
    assert_eq!((copy.rows(), copy.started.landed), (numbers(3), Some(prepared.choice.landing.replayed)));
    assert_eq!(Path::new(&copy.value("show data_directory")), options.pgdata);
    assert_eq!(copy.started.log.parent(), Some(options.pgdata.as_path()));
    assert!(copy.started.log.exists());
}

/// A test program that is killed leaves no server behind.
#[test]
fn a_restored_server_ends_with_the_tests() {
    let version = *versions().last().expect("a server");
    let mut story = Story::new(Server::start(version));
    story.backup();
    story.archive_and_die();
    let prepared = story.prepare(Target::Latest).expect("a plan");
    let options = story.options("left");
    story.restore(&prepared, &options).expect("a restore");
    let mut copy = story.start(&prepared, &options).expect("a server");
    let pid = copy.started.pid.expect("a postmaster");
    copy.guard.come_to_the_end();
    assert!(!Path::new("/proc").join(pid.to_string()).exists(), "it goes on");
}

/// A server that pauses or shuts down at the target is where the plan says, and can go on.
#[test]
fn a_server_can_wait_at_its_target() {
    for version in versions() {
        // Beside production its file is there: whoever opened by it would delete it, too.
        let trigger = TempDir::for_postgres("trigger");
        let file = trigger.path().join("promote");
        std::fs::write(&file, "").expect("a trigger file");
        let mut server = Server::builder(version);
        if version < MajorVersion::V16 {
            server = server.setting("promote_trigger_file", file.display());
        }
        let mut story = Story::new(server.start());
        story.backup();
        story.write(6);
        story.archive_and_die();
        let prepared = story.prepare(time(&story.rows[3].time, true)).expect("a plan");
        let options = Options { action: Action::Pause, ..story.options("pause") };
        story.restore(&prepared, &options).expect("a restore");
        let copy = story.start(&prepared, &options).expect("a server");
        assert!(file.exists());
        assert_eq!(copy.started.landed, Some(prepared.choice.landing.replayed));
        assert_eq!((copy.value("select pg_is_in_recovery()").as_str(), copy.rows()), ("t", numbers(4)));
        copy.client().query("select pg_wal_replay_resume()").expect("it goes on");
        crate::support::wait_for("the promotion", || (copy.value("select pg_is_in_recovery()") == "f").then_some(()));

        shut_down_at_every_kind_of_target(&story);
        let latest = story.prepare(Target::Latest).expect("a plan");
        let options = Options { action: Action::Shutdown, ..story.options("shutdown") };
        story.restore(&latest, &options).expect("a restore");
        // Production logs elsewhere, and not much.
        let auto = options.pgdata.join("postgresql.auto.conf");
        let mut text = std::fs::read_to_string(&auto).expect("settings");
        text.push_str("logging_collector = on\nlog_destination = csvlog\nlog_min_messages = fatal\n");
        std::fs::write(&auto, text).expect("settings");
        let copy = story.start(&latest, &options).expect("a server that ended at its target");
        assert_eq!((copy.started.pid, copy.started.landed), (None, Some(latest.choice.landing.replayed)));
        assert!(options.pgdata.join("recovery.signal").exists());
        if version >= MajorVersion::V16 {
            is_told_where_it_is_not_as_planned(&story, &latest);
        }
    }
}

/// What the server leaves behind is compared with the plan, whichever rule stopped it.
fn shut_down_at_every_kind_of_target(story: &Story) {
    let row = &story.rows[2];
    let xid = story.prepare(time(&row.time, true)).expect("a plan").choice.landing.last_commit.expect("a commit");
    let targets = [
        time(&row.time, true),
        Target::Xid { xid: xid.xid, inclusive: true },
        Target::Lsn { lsn: xid.start, inclusive: false },
        Target::Immediate,
    ];
    // Some on the oldest server, the others on the newest: the words are the same.
    let old = usize::from(story.server.version() < MajorVersion::V16);
    for target in targets.into_iter().skip(old).step_by(2) {
        let prepared = story.prepare(target).expect("a plan");
        let options = Options { action: Action::Shutdown, ..story.options("shut") };
        story.restore(&prepared, &options).expect("a restore");
        let copy = story.start(&prepared, &options).unwrap_or_else(|e| panic!("{}: {e}", prepared.plan.target));
        assert_eq!(copy.started.landed, Some(prepared.choice.landing.replayed), "{}", prepared.plan.target);
        drop(copy);
        std::fs::remove_dir_all(&options.pgdata).expect("remove the copy");
    }
}

/// Somebody has changed the target that the restore wrote.
fn is_told_where_it_is_not_as_planned(story: &Story, latest: &Prepared) {
    let other = story.prepare(time(&story.rows[2].time, true)).expect("a plan");
    let options = Options { action: Action::Shutdown, ..story.options("misled") };
    story.restore(latest, &options).expect("a restore");
    let auto = options.pgdata.join("postgresql.auto.conf");
    let mut text = std::fs::read_to_string(&auto).expect("settings");
    text.push_str(&format!("recovery_target_lsn = '{}'\n", other.choice.landing.last_record));
    std::fs::write(&auto, text).expect("settings");
    let Err(error) = story.start(latest, &options) else { panic!("it did not land as planned") };
    let said = error.to_string();
    assert!(said.contains("recovery stopping after") && said.contains("the plan said"), "{said}");
    assert!(error.advice().is_some_and(|hint| hint.contains("do not use this copy")), "{:?}", error.advice());
}

/// Whether such a server has paused, nobody can ask: it is left at work, and not waited for.
#[test]
fn a_server_that_lets_nobody_in_at_its_target_is_told() {
    let version = *versions().last().expect("a server");
    let mut story = Story::new(Server::start(version));
    story.backup();
    story.write(4);
    story.archive_and_die();
    let prepared = story.prepare(Target::Latest).expect("a plan");
    let options = Options { action: Action::Pause, ..story.options("shut") };
    story.restore(&prepared, &options).expect("a restore");
    let sockets = options.scratch.as_ref().expect("a scratch server").directory.clone();
    std::fs::write(sockets.join("pg_hba.conf"), "local all all reject\n").expect("rules");
    let begun = std::time::Instant::now();
    let error = story.start(&prepared, &options).err().expect("nobody can tell");
    let mut stop = crate::support::user::as_postgres(story.server.bin_dir().join("pg_ctl"));
    stop.arg("-D").arg(&options.pgdata).args(["-m", "immediate", "stop"]).output().expect("pg_ctl");
    assert!(error.to_string().contains("whether it has paused cannot be told"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(90), "{:?}", begun.elapsed());
}
