//! `walrecv check`: can this server be streamed, is the slot healthy, can the repository be written.

use serde::Serialize;

use super::args::Common;
use super::context::Context;
use super::{exit, output, slot};
use crate::archive::Archive;
use crate::disk::durable;
use crate::error::{Error, Kind, Result};
use crate::net::{Connection, Mode};
use crate::receive::sentinel;
use crate::repo::Found;

/// How long the probe object may take.
const PROBE_LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One finding, with what to do about it.
#[derive(Clone, Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    /// Exit code that this finding asks for; 0 unless it failed.
    code: u8,
    #[serde(skip)]
    kind: Option<Kind>,
}

#[derive(Default)]
struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.add(check, Verdict::Ok, found.into(), None, None);
    }

    fn warn(&mut self, check: &'static str, found: impl Into<String>, advice: impl Into<String>) {
        self.add(check, Verdict::Warn, found.into(), Some(advice.into()), None);
    }

    fn fail(&mut self, check: &'static str, error: &Error) {
        self.add(check, Verdict::Fail, error.to_string(), error.advice().map(str::to_owned), Some(error.kind()));
    }

    fn add(
        &mut self,
        check: &'static str,
        verdict: Verdict,
        found: String,
        advice: Option<String>,
        kind: Option<Kind>,
    ) {
        let code = kind.map_or(0, exit::code);
        self.findings.push(Finding { check, verdict, found, advice, code, kind });
    }

    fn first_failure(&self) -> Option<Error> {
        let (finding, kind) = self.findings.iter().find_map(|finding| Some((finding, finding.kind?)))?;
        let error = Error::new(kind, format!("check failed at {}: {}", finding.check, finding.found));
        Some(error.hint(finding.advice.as_deref().unwrap_or("all findings stand on standard output")))
    }
}

/// Shows all findings; the error is the first that failed.
pub async fn run(common: &Common) -> Result<()> {
    let context = Context::open(common).await?;
    let mut report = Report::default();
    report.ok(
        "repository",
        format!("{} ({})", context.repo.url(), if context.encrypted() { "encrypted" } else { "NOT encrypted" }),
    );
    keys(&context, &mut report).await;
    writable(&context, &mut report).await;
    match context.connect(Mode::Physical).await {
        Ok(mut connection) => {
            if let Err(error) = server(&context, &mut connection, &mut report).await {
                report.fail("server", &error);
            }
            connection.close().await;
            slot_health(&context, &mut report).await;
        }
        Err(error) => report.fail("server", &error),
    }
    show(common, &report);
    report.first_failure().map_or(Ok(()), Err)
}

async fn keys(context: &Context, report: &mut Report) {
    if let Err(error) = context.writer_ring().and_then(|ring| ring.fresh().map(|_| ())) {
        report.fail("keys to write", &error);
    } else {
        report.ok("keys to write", "repository secret and public key are here");
    }
    if !context.encrypted() {
        return;
    }
    match context.repository_keys().await {
        Ok(keys) if context.settings.identity.as_deref() != Some(keys.public.as_str()) => report.fail(
            "keys to restore",
            &Error::new(Kind::Key, "the private key opens another identity than the configured one")
                .hint("correct `identity` in the configuration: walrecv would write what this key cannot open"),
        ),
        Ok(_) => report.ok("keys to restore", "the configured private key opens the repository identity"),
        Err(error) => report.warn(
            "keys to restore",
            format!("not on this host ({error})"),
            "a host that only writes needs none; make sure that another place has one",
        ),
    }
}

/// Creates and deletes a small object. What a write-only host may not delete stays, and is a few bytes.
async fn writable(context: &Context, report: &mut Report) {
    let outcome = async {
        let id = crate::keys::setup::random_repository_id()?;
        let name = format!("probe/{}", crate::seal::content::hex(&id.0));
        let ours = |_: &[u8]| Found::Ours;
        context.repo.put_once(&name, &[bytes::Bytes::from_static(b"walrecv check\n")], &ours, PROBE_LIMIT).await?;
        let deleted = context.repo.delete(&name).await;
        if let Some(root) = context.repo.local_root() {
            // Its folder; it stays while another check runs.
            let _ = durable::remove_empty_dir(&root.join("probe"));
        }
        Ok::<_, Error>(deleted)
    };
    match outcome.await {
        Ok(Ok(())) => report.ok("repository can be written", "an object was created and deleted"),
        Ok(Err(_)) => report.ok("repository can be written", "an object was created; deleting is not allowed here"),
        Err(error) => report.fail("repository can be written", &error),
    }
}

async fn server(context: &Context, connection: &mut Connection, report: &mut Report) -> Result<()> {
    let identity = connection.identify_system().await?;
    report.ok(
        "server",
        format!(
            "PostgreSQL {}, system identifier {}, timeline {}",
            connection.version(),
            identity.system,
            identity.timeline
        ),
    );
    let level = connection.show("wal_level").await?;
    if level == "minimal" {
        let error = Error::new(Kind::Server, "wal_level = minimal: the WAL is not enough to restore from")
            .hint("set wal_level = replica in postgresql.conf and restart the server");
        report.fail("wal_level", &error);
    } else {
        report.ok("wal_level", level);
    }
    let senders: u32 = connection.show("max_wal_senders").await?.parse().unwrap_or(0);
    if senders < 3 {
        let advice = "a stream takes two connections and a backup one more: set max_wal_senders to 5 or more";
        report.warn("max_wal_senders", senders.to_string(), advice);
    } else {
        report.ok("max_wal_senders", senders.to_string());
    }
    let stored = Archive::incarnations(&context.repo, &context.cluster.name).await?;
    match stored.iter().find(|names| names.system == identity.system) {
        Some(_) => report.ok("same cluster", "the repository holds WAL of this system identifier"),
        None if stored.is_empty() => report.ok("same cluster", "nothing is stored yet"),
        None => report.fail(
            "same cluster",
            &Error::new(
                Kind::Diverged,
                format!("the repository holds another system identifier: {}", stored[0].system),
            )
            .hint("this is another cluster than before: check dsn, or use a new cluster name"),
        ),
    }
    synchronous(context, connection, report).await
}

/// Says whether commits wait for walrecv, and what that means.
async fn synchronous(context: &Context, connection: &mut Connection, report: &mut Report) -> Result<()> {
    let names = connection.show("synchronous_standby_names").await?;
    let listed = sentinel::lists(&names, context.conninfo()?.application_name());
    if listed && names.contains('*') {
        let advice = "'*' may choose walrecv by accident: name the standbys that shall count";
        report.warn("synchronous standby", format!("synchronous_standby_names = '{names}'"), advice);
    } else if listed {
        report.ok("synchronous standby", format!("listed in '{names}': commits wait for the repository"));
    } else {
        report.ok(
            "synchronous standby",
            format!("no: up to {:.0?} of commits can be lost", context.cluster.flush_interval),
        );
    }
    Ok(())
}

async fn slot_health(context: &Context, report: &mut Report) {
    let Some(name) = &context.cluster.slot else {
        let advice = "without a slot the server may remove WAL that is not stored yet: configure one";
        return report.warn("slot", "none configured", advice);
    };
    let view = match context.conninfo() {
        Ok(conninfo) => slot::view(&conninfo, name).await,
        Err(error) => Err(error),
    };
    match view {
        Ok(Some(view)) if view.wal_status.as_deref() == Some("lost") => report.fail(
            "slot",
            &Error::new(Kind::Slot, format!("slot {name} is lost: the server removed WAL that was not stored")).hint(
                "set on_gap = \"new-range\" to let walrecv make it anew and go on behind a recorded hole (docs/guide/gaps.md)",
            ),
        ),
        Ok(Some(view)) if view.restart_lsn.is_none() => {
            report.warn("slot", format!("{name} reserves no WAL yet"), "drop it and run `walrecv slot create`")
        }
        Ok(Some(view)) if view.active == Some(false) => report.warn(
            "slot",
            format!("{name} is not in use: nothing streams, and the server holds WAL back for it"),
            "start `walrecv receive`; where walrecv is listed in synchronous_standby_names, commits wait meanwhile",
        ),
        Ok(Some(view)) => {
            let retained =
                view.retained.map(|n| format!(", holds {} back", output::bytes(n.max(0) as u64))).unwrap_or_default();
            report.ok("slot", format!("{name} at {}{retained}", view.restart_lsn.unwrap_or_default()));
        }
        Ok(None) => report.fail(
            "slot",
            &Error::new(Kind::Slot, format!("the server has no slot {name}"))
                .hint("create it with `walrecv slot create`"),
        ),
        Err(error) => report.fail("slot", &error),
    }
}

fn show(common: &Common, report: &Report) {
    if common.output == output::Format::Json {
        return output::json(&serde_json::json!({ "findings": report.findings }));
    }
    for finding in &report.findings {
        let mark = match finding.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        output::line(format!("{mark}  {:<26}{}", finding.check, finding.found));
        if let Some(advice) = &finding.advice {
            output::line(format!("      {:<26}→ {advice}", ""));
        }
    }
}
