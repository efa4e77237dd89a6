//! A restored server: brought up by `walrecv restore --start --scratch`, asked, and ended again.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Story;
use crate::production::Acknowledged;
use crate::support::client::Row;
use crate::support::guard::Guard;
use crate::support::user::as_postgres;
use crate::support::{Client, wait_for};

/// A scratch server has no TCP; the number only names its socket.
const PORT: u16 = 5432;

pub struct Copy {
    pgdata: PathBuf,
    pg_ctl: PathBuf,
    _guard: Guard,
    /// From the start of the restore to the first answer.
    pub took: Duration,
}

impl Copy {
    /// Restores to `target`, given as arguments, and shows what walrecv says of it.
    pub fn restore(story: &Story, name: &str, target: &[&str]) -> Copy {
        let pgdata = story.folder.join(name);
        let bin = story.production.server.bin_dir();
        let [pgdata_text, bin_text] = [&pgdata, &bin].map(|path| path.display().to_string());
        let mut args = vec!["restore", "--config", &story.config];
        args.extend(target);
        args.extend(["--pgdata", &pgdata_text, "--start", "--scratch", "--pg-bindir", &bin_text]);
        let begun = Instant::now();
        // From here on a server may be running, so that it has to go whatever happens next.
        let stop = StopOnFailure { pgdata: &pgdata, pg_ctl: &bin.join("pg_ctl"), armed: true };
        story.walrecv(&args);
        wait_for("the restored server to answer", || {
            let mut client = Client::connect(&pgdata.join("walrecv-scratch"), PORT, "postgres", "postgres").ok()?;
            client.query("select count(*) from ledger").ok()
        });
        let took = begun.elapsed();
        let pid = std::fs::read_to_string(pgdata.join("postmaster.pid")).expect("postmaster.pid");
        let pid = pid.lines().next().and_then(|line| line.trim().parse().ok()).expect("the server's process id");
        stop.disarm();
        Copy { pg_ctl: bin.join("pg_ctl"), _guard: Guard::of_server(pid), pgdata, took }
    }

    fn rows(&self, sql: &str) -> Vec<Row> {
        let client = Client::connect(&self.pgdata.join("walrecv-scratch"), PORT, "postgres", "postgres");
        let mut client = client.unwrap_or_else(|e| panic!("the restored server: {e}"));
        client.query(sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    /// One value as text.
    pub fn ask(&self, sql: &str) -> String {
        self.rows(sql).into_iter().flatten().next().flatten().unwrap_or_default()
    }

    /// The rows of the ledger, each with the time of its commit as this server knows it.
    pub fn ledger(&self) -> Acknowledged {
        let sql = "select id, (extract(epoch from pg_xact_commit_timestamp(xmin)) * 1000000)::bigint from ledger";
        let number = |row: &Row, i: usize| row.get(i)?.as_deref()?.parse::<i64>().ok();
        let rows = self.rows(sql).into_iter();
        rows.map(|row| (number(&row, 0).expect("an id") as u64, number(&row, 1).expect("a commit time"))).collect()
    }

    /// What pgbench keeps equal in every transaction: balances of tellers, branches and accounts, and the history.
    pub fn balanced(&self) -> bool {
        let sums = [
            "select sum(tbalance) from pgbench_tellers",
            "select sum(bbalance) from pgbench_branches",
            "select sum(abalance) from pgbench_accounts",
            "select coalesce(sum(delta), 0) from pgbench_history",
        ];
        let found = sums.map(|sql| self.ask(sql));
        found.iter().all(|sum| *sum == found[0])
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        stop(&self.pgdata, &self.pg_ctl);
    }
}

struct StopOnFailure<'a> {
    pgdata: &'a Path,
    pg_ctl: &'a Path,
    armed: bool,
}

impl StopOnFailure<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for StopOnFailure<'_> {
    fn drop(&mut self) {
        if self.armed {
            stop(self.pgdata, self.pg_ctl);
        }
    }
}

/// Where no server is running this does nothing.
fn stop(pgdata: &Path, pg_ctl: &Path) {
    let mut command: Command = as_postgres(pg_ctl);
    command.arg("-D").arg(pgdata).args(["-m", "immediate", "-w", "stop"]);
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
