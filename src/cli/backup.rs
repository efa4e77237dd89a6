//! `walrecv backup`: a base backup now. Where no receiver streams the cluster, its WAL is streamed here.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::args::{BackupArgs, Common};
use super::context::{Context, Signals};
use super::progress::Teller;
use super::receive::{options as receiver_options, place};
use super::{list, output, show};
use crate::archive::Archive;
use crate::backup::{BackupOptions, OpenContents, Outcome, Progress, take_with};
use crate::catalog;
use crate::config::settings;
use crate::daemon::stand_in::{Service, StandIn};
use crate::error::{Error, Kind, Result};
use crate::keys::ring::WriterRing;
use crate::net::{Connection, Conninfo, Mode};
use crate::pg::SegmentSize;
use crate::receive::OnGap;
use crate::repo::ClusterNames;
use crate::seal::sealer::Compression;
use crate::wire::command::{MAX_RATE, ServerCompression};

/// Everything that a backup needs, made ready.
struct Ready {
    archive: Archive,
    writer: Arc<WriterRing>,
    server: Conninfo,
    options: BackupOptions,
    stand_in: StandIn,
    teller: Arc<Teller>,
    /// The manifest is on its way.
    completing: Arc<AtomicBool>,
}

pub async fn run(common: &Common, args: &BackupArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    let ready = tokio::select! {
        ready = prepare(common, args) => ready?,
        name = signals.next() => return Err(interrupted(name)),
    };
    let Ready { archive, writer, server, options, stand_in, teller, completing } = &ready;
    let taken = {
        let taking = pin!(take_with(archive, writer.clone(), server, options, stand_in));
        until_signal(taking, &mut signals, completing).await
    };
    teller.clear();
    // Whatever became of the backup, WAL that was received is kept. A second signal does not wait for that.
    let service = tokio::select! {
        service = stand_in.end() => service,
        _ = signals.next() => Service::default(),
    };
    report(common, args, &taken?, &service);
    Ok(())
}

/// A signal ends a backup as long as that is not complete. While its manifest is on its way it may be, so what becomes of that is waited for; a second signal
/// ends that, too.
async fn until_signal(
    mut taking: Pin<&mut impl Future<Output = Result<Outcome>>>,
    signals: &mut Signals,
    completing: &AtomicBool,
) -> Result<Outcome> {
    let name = tokio::select! {
        taken = &mut taking => return taken,
        name = signals.next() => name,
    };
    if !completing.load(Ordering::Relaxed) {
        return Err(interrupted(name));
    }
    tokio::select! {
        taken = &mut taking => taken,
        name = signals.next() => Err(Error::new(
            Kind::Interrupted,
            format!("interrupted by {name} while the manifest was being stored: whether the backup is complete is not known"),
        )
        .hint("`walrecv list` tells.")),
    }
}

fn interrupted(name: &str) -> Error {
    Error::new(Kind::Interrupted, format!("interrupted by {name}: the backup is given up"))
}

async fn prepare(common: &Common, args: &BackupArgs) -> Result<Ready> {
    let context = Context::open(common).await?;
    context.demand_readers().await?;
    let compression = match &args.compression {
        Some(text) => settings::compression(text)
            .map_err(|problem| Error::new(Kind::Usage, format!("--compression: {problem}")))?,
        None => context.cluster.compression,
    };
    let server = context.conninfo()?;
    let writer = Arc::new(context.writer_ring()?);
    let archive = match context.archive_for_backup(context.index_ring()?).await? {
        Some(archive) => archive,
        None => archive_of_server(&context, &server).await?,
    };
    let teller = Arc::new(Teller::new(common, args, &context.cluster.name));
    let (shown, told) = (teller.clone(), teller.clone());
    let completing = Arc::new(AtomicBool::new(false));
    let last = completing.clone();
    let options = BackupOptions {
        label: args.label.clone(),
        fast_checkpoint: args.checkpoint == "fast",
        max_rate: args.max_rate,
        server_compression: server_compression(&args.server_compression)?,
        full: args.full,
        full_every: context.cluster.full_every,
        compression,
        state_dir: Some(context.settings.state_dir.clone()),
        contents: Some(contents(&context, &archive)),
        progress: Some(Arc::new(move |progress| {
            last.fetch_or(progress == Progress::Completing, Ordering::Relaxed);
            shown.progress(progress);
        })),
        ..BackupOptions::default()
    };
    let mut receiver = receiver_options(&context)?;
    if context.cluster.slot.is_none() && !context.cluster.on_gap_given {
        // Without a slot nobody was ever promised that nothing is missing between two backups.
        receiver.on_gap = OnGap::NewRange;
    }
    // A receiver of this host that follows another server keeps it up to date by itself.
    receiver.catalog = receiver.catalog.filter(|path| !catalog::is_written(path));
    let stand_in = StandIn::new(archive.clone(), receiver, place(&context)?, move |what| told.told(&what));
    Ok(Ready { archive, writer, server, options, stand_in, teller, completing })
}

/// Opens the archive with the private key, where this host has it.
fn contents(context: &Context, archive: &Archive) -> OpenContents {
    let (context, names) = (context.clone(), archive.names.clone());
    Arc::new(move || {
        let (context, names) = (context.clone(), names.clone());
        Box::pin(async move { Ok(context.archive_of(names, context.content_ring().await?)) })
    })
}

/// `none`, `lz4`, `zstd` or `zstd:LEVEL`.
fn server_compression(text: &str) -> Result<Option<ServerCompression>> {
    // gzip costs the server the most and saves the least.
    let refused = |problem: String| Error::new(Kind::Usage, format!("--server-compression: {problem}"));
    Ok(match settings::compression(text).map_err(refused)? {
        Compression::None => None,
        Compression::Lz4 => Some(ServerCompression::Lz4),
        Compression::Zstd(level) => Some(ServerCompression::Zstd { level }),
    })
}

/// Where this server's WAL and backups will be, before anything of it is stored.
async fn archive_of_server(context: &Context, server: &Conninfo) -> Result<Archive> {
    let mut connection = Connection::connect(server, Mode::Physical, "").await?;
    let system = connection.identify_system().await?.system;
    let size = connection.show("wal_segment_size").await?;
    connection.close().await;
    let segment_size = SegmentSize::from_show(&size)
        .ok_or_else(|| Error::new(Kind::Server, format!("wal_segment_size is {size:?}, expected 1MB to 1GB")))?;
    let names = ClusterNames { cluster: context.cluster.name.clone(), system, segment_size };
    Ok(context.archive_of(names, context.index_ring()?))
}

/// The copy, as `list` and `show` tell it, and how fast it was; then all that somebody waited for: the checkpoint before it, maps and WAL after it.
fn took(outcome: &Outcome) -> String {
    let copy = show::took(&outcome.manifest);
    let rate = output::bytes((outcome.manifest.sizes.read as f64 / copy.max(0.001)) as u64);
    let (copy, all) = (output::seconds(copy), output::seconds(outcome.elapsed.as_secs_f64()));
    let wal = output::seconds(outcome.waited_for_wal.as_secs_f64());
    format!("{copy} ({rate}/s); in all {all}, {wal} of it waiting for WAL")
}

fn report(common: &Common, args: &BackupArgs, outcome: &Outcome, service: &Service) {
    let manifest = &outcome.manifest;
    if common.output == output::Format::Json {
        let mut value = list::backup_json(manifest);
        value["elapsed_seconds"] = outcome.elapsed.as_secs_f64().into();
        value["waited_for_wal_seconds"] = outcome.waited_for_wal.as_secs_f64().into();
        value["wal_streamed_here"] = match &service.slot {
            Some((slot, temporary)) => json!({ "slot": slot, "temporary": temporary }),
            None => json!(null),
        };
        return output::json(&value);
    }
    if args.quiet {
        return;
    }
    if let Some(why) = &manifest.why_full {
        output::line(format!("transfer     full: {why}"));
    }
    let sizes = &manifest.sizes;
    output::line(format!("backup       {}", manifest.id));
    output::line(format!("WAL          {} to {}, timeline {}", manifest.start, manifest.stop, manifest.timeline));
    if let Some((slot, temporary)) = &service.slot {
        let kind = if *temporary { "a temporary slot, which is gone" } else { slot.as_str() };
        output::line(format!("             streamed by this command on {kind}"));
    }
    output::line(format!("data         {} in {}", output::bytes(sizes.total), output::count(sizes.files, "file")));
    output::line(format!("read         {}", show::read(manifest)));
    output::line(format!("changed      {}", show::changed(manifest)));
    output::line(format!(
        "stored       {} in {}",
        output::bytes(sizes.stored),
        output::count(sizes.packs.into(), "pack")
    ));
    output::line(format!("took         {}", took(outcome)));
    if manifest.bad_page_count > 0 {
        output::line(format!("BAD PAGES    {}: {}", manifest.bad_page_count, super::show::BAD_PAGES));
        for page in manifest.bad_pages.iter().take(10) {
            output::line(format!("             {}", super::show::bad_page(manifest, page)));
        }
    }
    manifest.absences().for_each(|absence| output::line(format!("FILES ABSENT {absence}")));
    if let Some(torn) = show::torn(manifest) {
        output::line(format!("torn pages   {torn}"));
    }
    for hole in &service.holes {
        output::line(format!(
            "HOLE         WAL from {} to {} is not stored: older backups cannot be restored past it, this one begins behind it",
            hole.from, hole.to
        ));
    }
}

/// `--max-rate` in kB a second, read as `pg_basebackup` reads it (`parse_max_rate`): a number, which may have a fraction, of kB, or with `M` of MB.
pub(super) fn max_rate(text: &str) -> std::result::Result<u32, String> {
    let (number, unit) = match text.strip_suffix('M') {
        Some(number) => (number, 1024.0),
        None => (text.strip_suffix('k').unwrap_or(text), 1.0),
    };
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let kilobytes = number.parse::<f64>().ok().filter(|_| plain).map(|number| number * unit);
    let (least, most) = (f64::from(*MAX_RATE.start()), f64::from(*MAX_RATE.end()));
    match kilobytes {
        Some(rate) if (least..=most).contains(&rate) => Ok(rate as u32),
        Some(_) => Err("expected 32k to 1024M".to_owned()),
        None => Err("expected kB a second, such as 50000 or 50000k, or MB a second, such as 50M".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::max_rate;

    #[test]
    fn rates_are_read_as_pg_basebackup_reads_them() {
        for (text, expected) in [("32", 32), ("50000", 50_000), ("50000k", 50_000), ("50M", 51_200), ("1.5M", 1536)] {
            assert_eq!(max_rate(text), Ok(expected), "{text}");
        }
        assert_eq!((max_rate("1024M"), max_rate("1048576")), (Ok(1_048_576), Ok(1_048_576)));
        for outside in ["31", "0", "1025M", "1048577", "0.01M"] {
            assert!(max_rate(outside).unwrap_err().contains("32k to 1024M"), "{outside}");
        }
        for wrong in ["", "M", "fast", "50MB", "50 MB/s", "-50", "inf", "1e4", "5MM", "50G"] {
            assert!(max_rate(wrong).unwrap_err().contains("such as 50M"), "{wrong}");
        }
    }
}
