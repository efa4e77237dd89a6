//! A store that takes connections and never answers: every command that ends by itself ends with words, and 10, within a minute or so.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::support::{TempDir, Walrecv};

/// Four answers are waited for, 15 s each. A loaded machine may be late; before there was a limit it took more than five minutes.
const LONGEST: Duration = Duration::from_secs(150);

/// A store's address, in a folder with a configuration that names it.
struct Scene {
    places: TempDir,
    endpoint: String,
    /// The kernel takes the connections; nobody reads from them.
    _silent: TcpListener,
}

impl Scene {
    fn new() -> Scene {
        let places = TempDir::new("silent");
        let silent = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let endpoint = format!("http://127.0.0.1:{}", silent.local_addr().expect("an address").port());
        let config = "repo = \"s3://bucket/here\"\n[clusters.main]\ndsn = \"host=127.0.0.1 port=1\"\nslot = \"s\"\n";
        fs::write(places.join("walrecv.toml"), config).expect("a configuration");
        Scene { places, endpoint, _silent: silent }
    }

    fn walrecv(&self, args: &[&str]) -> Walrecv {
        let settings = [
            ("AWS_ENDPOINT_URL", self.endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
        ];
        Walrecv::new(args).envs(settings).dir(self.places.path())
    }
}

/// It asks again by itself, and streams meanwhile, if it is told so; before there was a limit it waited for a minute each time.
#[test]
fn a_standby_waits_for_a_silent_store_no_longer_than_it_was_told() {
    let scene = Scene::new();
    fs::write(scene.places.join("standby.signal"), "").expect("a standby");
    let fetch = |name: &str| ["wal-fetch", name, "fetched", "--standby-wait", "1s"].map(str::to_owned);
    let began = Instant::now();
    for name in ["000000010000000000000001", "00000002.history"] {
        let output = scene.walrecv(&fetch(name).each_ref().map(String::as_str)).run().expect_code(1);
        assert!(output.stderr.contains("the standby will ask again"), "{}", output.stderr);
    }
    // Five seconds each.
    assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
}

#[test]
fn no_command_waits_for_ever_for_a_store_that_does_not_answer() {
    let scene = Scene::new();
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
    let running: Vec<_> = commands.iter().map(|args| scene.walrecv(args).spawn()).collect();
    for (one, args) in running.into_iter().zip(commands) {
        let output = one.wait().expect_code(10);
        let told = output.stderr;
        assert!(told.contains("no answer from the store within 15 s; trying again (1 of 4)"), "{args:?}: {told}");
        assert!(told.contains("error: ") && told.contains("walrecv.json"), "{args:?}: {told}");
        assert!(began.elapsed() < LONGEST, "{args:?}: {:?}", began.elapsed());
    }
}
