//! A store that takes connections and never answers: every command that ends by itself ends with words, and 10, within a minute or so.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::support::{TempDir, Walrecv};

/// Four answers are waited for, 15 s each. A loaded machine may be late; before there was a limit it took more than five minutes.
const LONGEST: Duration = Duration::from_secs(150);

#[test]
fn no_command_waits_for_ever_for_a_store_that_does_not_answer() {
    let places = TempDir::new("silent");
    // The kernel takes the connections; nobody reads from them.
    let silent = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let endpoint = format!("http://127.0.0.1:{}", silent.local_addr().expect("an address").port());
    let config = "repo = \"s3://bucket/here\"\n[clusters.main]\ndsn = \"host=127.0.0.1 port=1\"\nslot = \"s\"\n";
    fs::write(places.join("walrecv.toml"), config).expect("a configuration");
    let commands: [&[&str]; 8] = [
        &["list"],
        &["list", "--windows"],
        &["verify"],
        &["show", "latest"],
        &["expire", "--backup", "latest", "--plan"],
        &["find", "--last", "1h"],
        &["restore", "--latest", "--plan"],
        &["repo", "stats"],
    ];
    let began = Instant::now();
    let spawn = |args: &&[&str]| {
        let settings = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ];
        Walrecv::new(args.iter()).envs(settings).dir(places.path()).spawn()
    };
    let running: Vec<_> = commands.iter().map(spawn).collect();
    for (one, args) in running.into_iter().zip(commands) {
        let output = one.wait().expect_code(10);
        let told = output.stderr;
        assert!(told.contains("no answer from the store within 15 s; trying again (1 of 4)"), "{args:?}: {told}");
        assert!(told.contains("error: ") && told.contains("walrecv.json"), "{args:?}: {told}");
        assert!(began.elapsed() < LONGEST, "{args:?}: {:?}", began.elapsed());
    }
}
