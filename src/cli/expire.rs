//! `walrecv expire`: deletes backups, and frees what nothing needs any more. Says what it is going to do before it does it.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Common, ExpireArgs};
use super::context::{Context, env};
use super::{output, show};
use crate::archive::Archive;
use crate::config::duration;
use crate::error::{Error, Kind, Result};
use crate::retention::plan::Spared;
use crate::retention::{Amount, ExpireOptions, Expiry, Outcome, Proposal};
use crate::seal::content::BackupId;

pub async fn run(common: &Common, args: &ExpireArgs) -> Result<()> {
    let delete_delay = duration::parse(&args.delete_delay)
        .map_err(|problem| Error::new(Kind::Usage, format!("--delete-delay: {problem}")))?;
    let context = Context::open(common).await?;
    let archive = context.archive(context.index_ring()?).await?;
    let asked = ids(&archive, &args.backup).await?;
    let options = ExpireOptions {
        backups: asked.clone(),
        force: args.force,
        delete_delay,
        state_dir: Some(context.settings.state_dir.clone()),
        host: host(),
        user: env("USER").or_else(|| env("LOGNAME")).unwrap_or_default(),
        ..ExpireOptions::default()
    };
    let mut expiry = Expiry::begin(archive.clone(), options).await?;
    let proposal = expiry.propose().await?;
    let text = common.output == output::Format::Text;
    if text {
        show(&proposal, delete_delay);
    }
    if args.plan {
        if !text {
            output::json(&as_json(&archive, &proposal, None));
        }
        return verdict(&proposal.spared, proposal.blocked.as_ref(), &asked);
    }
    let ask = match args.yes || proposal.delete.is_empty() {
        true => false,
        false => asks(std::io::stdin().is_terminal(), output::watched())?,
    };
    if ask && !agreed().await? {
        return Err(Error::new(Kind::Interrupted, "not agreed to: nothing was deleted"));
    }
    let outcome = expiry.carry_out(&context.writer_ring()?, &proposal).await?;
    match text {
        true => report(&outcome),
        false => output::json(&as_json(&archive, &proposal, Some(&outcome))),
    }
    let Outcome { mut failures, spared, blocked, .. } = outcome;
    if failures.is_empty() {
        return verdict(&spared, blocked.as_ref(), &asked);
    }
    let (count, first) = (failures.len(), failures.swap_remove(0));
    let class = if count == 1 { "one step failed".to_owned() } else { format!("{count} steps failed, the first") };
    Err(first.context(class).hint("run this again: it goes on where it stopped"))
}

/// The backups that are meant, as everywhere else. A whole id need not be listed: its manifest may be what is gone.
async fn ids(archive: &Archive, typed: &[String]) -> Result<Vec<BackupId>> {
    let mut ids = Vec::new();
    for text in typed.iter().map(|text| text.trim()) {
        ids.push(match BackupId::parse(text) {
            Ok(id) => id,
            Err(_) => show::choose(archive, text).await?,
        });
    }
    Ok(ids)
}

/// This host's name, for a person who finds the plan; empty where it cannot be had.
pub(super) fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// Whether a person is to be asked: where one can answer. Scripts have said what they want. Who could answer and would not see the question is told so.
fn asks(answers: bool, sees: bool) -> Result<bool> {
    match (answers, sees) {
        (false, _) => Ok(false),
        (true, true) => Ok(true),
        (true, false) => Err(Error::new(Kind::Usage, "cannot ask whether to delete: standard error is no terminal")
            .hint("say `--yes` if it shall go on without asking")),
    }
}

async fn agreed() -> Result<bool> {
    let ask = || {
        let _ = write!(std::io::stderr().lock(), "delete? [y/N] ");
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
    };
    let failed = |e| Error::new(Kind::Failed, "cannot read the answer").caused_by(e);
    tokio::task::spawn_blocking(ask).await.map_err(failed)
}

/// The run is done; but is what was asked for?
fn verdict(spared: &[(BackupId, Spared)], blocked: Option<&(Kind, String)>, asked: &[BackupId]) -> Result<()> {
    if let Some((kind @ Kind::Retention, problem)) = blocked {
        return Err(Error::new(*kind, problem.clone())
            .hint("see whether the folder `backups` of this cluster is all there before you use force"));
    }
    if let Some((kind, problem)) = blocked {
        let text = format!("nothing can be swept while a backup cannot be read or is missing: {problem}");
        return Err(Error::new(*kind, text).hint(match kind {
            Kind::Corrupt => {
                "put the object back from another copy of the repository, or delete that backup with --force"
            }
            Kind::Key => "give the repository secret that it was sealed with: a backup that another key opens is deleted by no force",
            _ => "use a version of walrecv that reads it: until then it is deleted by no force",
        }));
    }
    match spared.iter().find(|(id, _)| asked.contains(id)) {
        Some((id, why)) => Err(Error::new(Kind::Retention, format!("backup {id} stays for now: {}", reason(why)))
            .hint(match why {
                Spared::Reused { .. } => {
                    "run the same command again when that one is complete; if it was interrupted (walrecv list), take a backup on its host first, or wait a day"
                }
                _ => "run the same command again when that has passed: nothing does it by itself",
            })),
        None => Ok(()),
    }
}

fn reason(why: &Spared) -> String {
    match why {
        Spared::Reused { by } => format!("backup {by} has begun and reuses it"),
        Spared::DarkIntent { of } => format!("the intent of backup {of} cannot be read: it may reuse anything"),
        Spared::Last { unfit: None } => "no complete backup would be left".to_owned(),
        Spared::Last { unfit: Some((id, why)) } => {
            format!("no backup would be left to restore from: nothing can be restored from {id}: {why}")
        }
    }
}

fn amount(amount: &Amount) -> String {
    format!("{} in {}", output::bytes(amount.bytes), output::count(amount.objects, "object"))
}

fn show(proposal: &Proposal, delay: Duration) {
    for (id, manifest) in &proposal.delete {
        let about = match manifest {
            Some(m) => {
                format!("{:?}, {} of data, taken {}", m.label, output::bytes(m.sizes.total), output::time(m.stopped_at))
            }
            None => "its manifest cannot be read".to_owned(),
        };
        output::line(format!("deletes      {id}  {about}"));
    }
    for id in &proposal.already {
        output::line(format!("is none      {id}  deleted or given up before; what it left goes with the rest"));
    }
    for (id, why) in &proposal.spared {
        output::line(format!("spares       {id}  {}", reason(why)));
    }
    for (id, why) in &proposal.lost {
        output::line(format!("MISSING      {id}  its manifest is gone, and no expiry deleted it: {why}"));
    }
    for id in &proposal.give_up {
        output::line(format!("gives up     {id}  never completed"));
    }
    for id in &proposal.sweep {
        output::line(format!("sweeps       {id}"));
    }
    let (kept, need) = (proposal.kept as u64, if proposal.kept == 1 { "it needs" } else { "they need" });
    output::line(format!("keeps        {}, with all that {need}", output::count(kept, "complete backup")));
    output::line(format!("frees now    {}", amount(&proposal.now)));
    if proposal.later.objects > 0 {
        let when = match delay.is_zero() {
            true => "when nothing reuses it any more".to_owned(),
            false => {
                format!("{} after the deletion, by another `walrecv expire`", output::seconds(delay.as_secs_f64()))
            }
        };
        output::line(format!("frees later  {}, {when}", amount(&proposal.later)));
    }
    if !proposal.acts() {
        output::line("nothing to do now");
    }
}

fn report(outcome: &Outcome) {
    let Some(plan) = &outcome.plan else { return };
    output::line(String::new());
    outcome.deleted.iter().for_each(|id| output::line(format!("deleted      {id}")));
    outcome.given_up.iter().for_each(|id| output::line(format!("given up     {id}")));
    output::line(format!("freed        {}", amount(&outcome.freed)));
    if outcome.unfinished {
        output::line(format!("plan         {plan} stands until another `walrecv expire` has freed the rest"));
    }
    for error in &outcome.failures {
        output::note(format!("walrecv: {error}"));
    }
}

fn as_json(archive: &Archive, proposal: &Proposal, outcome: Option<&Outcome>) -> Value {
    let text = |ids: &[BackupId]| ids.iter().map(BackupId::to_string).collect::<Vec<_>>();
    let spared = |all: &[(BackupId, Spared)]| -> Vec<Value> {
        all.iter().map(|(id, why)| json!({ "id": id.to_string(), "reason": reason(why) })).collect()
    };
    let sum = |amount: &Amount| json!({ "objects": amount.objects, "bytes": amount.bytes });
    let delete: Vec<Value> = proposal
        .delete
        .iter()
        .map(|(id, manifest)| {
            json!({
                "id": id.to_string(), "label": manifest.as_ref().map(|m| m.label.clone()),
                "total_bytes": manifest.as_ref().map(|m| m.sizes.total),
                "stopped_at": manifest.as_ref().map(|m| output::rfc3339(m.stopped_at)),
            })
        })
        .collect();
    let mut value = json!({
        "cluster": archive.names.cluster, "delete": delete, "already": text(&proposal.already),
        "spared": spared(&proposal.spared), "missing": proposal.lost.iter().map(|(id, why)| json!({ "id": id.to_string(), "reason": why })).collect::<Vec<_>>(),
        "give_up": text(&proposal.give_up), "sweep": text(&proposal.sweep),
        "kept": proposal.kept, "frees_now": sum(&proposal.now), "frees_later": sum(&proposal.later),
        "blocked": proposal.blocked.as_ref().map(|(_, problem)| problem.clone()), "done": null,
    });
    if let Some(outcome) = outcome {
        value["done"] = json!({
            "plan": outcome.plan.as_ref().map(ToString::to_string), "unfinished": outcome.unfinished,
            "deleted": text(&outcome.deleted), "spared": spared(&outcome.spared), "given_up": text(&outcome.given_up),
            "freed": sum(&outcome.freed), "blocked": outcome.blocked.as_ref().map(|(_, problem)| problem.clone()),
            "failures": outcome.failures.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spared_is_to_be_asked_for_again() {
        let [id, by] =
            ["20260131T020000Z-00000001-0000000003000028-1a2b", "20260131T030000Z-00000001-0000000004000028-1a2b"];
        let [id, by] = [id, by].map(|text| BackupId::parse(text).unwrap());
        let asked = [id.clone()];
        let error = verdict(&[(id, Spared::Reused { by: by.clone() })], None, &asked).unwrap_err();
        assert!(error.kind() == Kind::Retention && error.to_string().contains(by.as_str()), "{error}");
        // No plan names it, and a run without its id does not know of it.
        assert!(error.advice().is_some_and(|hint| hint.contains("the same command") && !hint.contains("plan")));
        // Force deletes what is damaged, and nothing that other keys or versions read.
        let hint = |kind| {
            let error = verdict(&[], Some(&(kind, "it cannot be read".to_owned())), &asked).unwrap_err();
            (error.kind(), error.advice().unwrap_or_default().to_owned())
        };
        assert!(hint(Kind::Corrupt).1.contains("--force"));
        for kind in [Kind::Key, Kind::Repository] {
            let (told, hint) = hint(kind);
            assert!(told == kind && hint.contains("by no force") && !hint.contains("--force"), "{hint}");
        }
    }

    #[test]
    fn why_the_last_one_stays_names_the_one_that_cannot_be_restored() {
        let id = BackupId::parse("20260131T020000Z-00000001-0000000003000028-1a2b").unwrap();
        assert_eq!(reason(&Spared::Last { unfit: None }), "no complete backup would be left");
        let told = reason(&Spared::Last { unfit: Some((id.clone(), "its WAL is gone".to_owned())) });
        assert!(
            told.contains(id.as_str()) && told.ends_with("its WAL is gone") && !told.contains("complete"),
            "{told}"
        );
    }

    #[test]
    fn whoever_cannot_see_the_question_is_not_taken_to_agree() {
        assert_eq!(asks(false, false).ok(), Some(false), "a script");
        assert_eq!(asks(false, true).ok(), Some(false));
        assert_eq!(asks(true, true).ok(), Some(true));
        let error = asks(true, false).unwrap_err();
        assert!(error.kind() == Kind::Usage && error.advice().is_some_and(|hint| hint.contains("--yes")), "{error}");
    }
}
