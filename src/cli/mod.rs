//! Floor 7: arguments, one file per command, output, the exit-code table.

pub mod args;
mod at_rest;
mod backup;
mod catalog;
mod check;
mod context;
mod drill;
mod events;
mod examples;
pub mod exit;
mod expire;
mod extract;
mod find;
mod found;
mod health;
mod init;
mod list;
mod memory;
mod metrics;
mod output;
mod progress;
mod receive;
mod repo;
mod restore;
mod run;
mod scratch;
mod show;
mod slot;
mod status;
mod target;
mod unfinished;
mod verify;
mod wal_fetch;
mod windows;

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use self::args::{CallOfServer, CatalogCommand, Cli, Command, CommandOfServer, RepoCommand, SlotCommand};
use crate::error::{Error, Kind, Result};

/// Parses the line, runs the command, prints an error as last words, and returns the exit code.
pub fn main(line: impl IntoIterator<Item = OsString>) -> u8 {
    let line: Vec<OsString> = line.into_iter().collect();
    let fetch = line.iter().skip(1).any(|word| word == "wal-fetch");
    // A panic inside wal-fetch would leave as 101, which PostgreSQL reads as the end of the archive.
    let outcome = std::panic::catch_unwind(|| run(&line, fetch));
    match outcome {
        Ok(code) if fetch => wal_fetch::only_allowed(code),
        Ok(code) => code,
        Err(_) if fetch => exit::FETCH_UNKNOWN,
        Err(_) => 101,
    }
}

/// The code of an error. In wal-fetch only the command itself may say 1, once it has proven that the file does not exist.
fn failure(error: &Error, fetch: bool) -> u8 {
    if fetch { exit::FETCH_UNKNOWN } else { exit::code(error.kind()) }
}

fn run(line: &[OsString], fetch: bool) -> u8 {
    let cli = match parse(line, fetch) {
        Ok(cli) => cli,
        Err(error) if error.exit_code() == 0 || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Help and version that were asked for are 0; help in place of a missing command is 2.
            return match error.print() {
                Err(full) if full.kind() != std::io::ErrorKind::BrokenPipe => exit::code(Kind::Failed),
                _ => error.exit_code() as u8,
            };
        }
        Err(error) => {
            output::error(&wrong_usage(&error), asked_format(line));
            return exit::code(Kind::Usage);
        }
    };
    start_tracing(cli.common.verbose);
    let format = cli.common.output;
    // Most calls of a recovery are answered here: what follows costs more than they do.
    if let Command::WalFetch(args) = &cli.command
        && let Some(code) = wal_fetch::at_hand(&cli.common, args)
    {
        return code;
    }
    if matches!(cli.command, Command::Restore(_) | Command::Drill(_) | Command::Extract(_)) {
        memory::large_buffers_go_back();
    }
    // A stream is one conversation, and computes on a thread of its own: a second worker would only be woken for what the first one is about to do.
    let workers = if matches!(cli.command, Command::Receive(_)) { 1 } else { 2 };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = Error::new(Kind::Failed, "cannot start").caused_by(error);
            output::error(&error, format);
            return failure(&error, fetch);
        }
    };
    let outcome = runtime.block_on(command(cli));
    // Blocking work that is still going on (a slow put) must not hold the exit up.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => match output::lost() {
            Some(error) if !fetch => {
                output::error(&error, format);
                failure(&error, fetch)
            }
            _ => code,
        },
        Err(error) => {
            output::error(&error, format);
            failure(&error, fetch)
        }
    }
}

/// Of a recovery each call is waited for by the server, and to set up the arguments of all other commands takes longer than most of them: so `wal-fetch` is tried
/// alone, and whatever is not a call of it is left to the whole.
fn parse(line: &[OsString], fetch: bool) -> clap::error::Result<Cli> {
    let alone = if fetch { CallOfServer::try_parse_from(line).ok() } else { None };
    match alone {
        Some(CallOfServer { common, command: CommandOfServer::WalFetch(args) }) => {
            Ok(Cli { common, command: Command::WalFetch(args) })
        }
        None => Cli::try_parse_from(line),
    }
}

/// What clap says of a wrong line, as every other error is said: one line, and what to do.
fn wrong_usage(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let message = paragraphs.next().unwrap_or_default();
    let usual = paragraphs.filter(|p| !p.starts_with("For more information"));
    let rest: Vec<String> = match nested(error) {
        Some(meant) => vec![format!("`{meant}` is a command")],
        None => usual.collect(),
    };
    let hint = format!("{}{}`--help` tells the rest", rest.join("; "), if rest.is_empty() { "" } else { "; " });
    Error::new(Kind::Usage, message.strip_prefix("error: ").unwrap_or(&message)).hint(hint)
}

/// What stands in the place of a command and is one of a group's: `repo stats` for `stats`.
fn nested(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let all = Cli::command();
    let group = all.get_subcommands().find(|group| group.get_subcommands().any(|one| one.get_name() == word))?;
    Some(format!("walrecv {} {word}", group.get_name()))
}

/// `--output` of a line that could not be read as a whole.
fn asked_format(line: &[OsString]) -> output::Format {
    let after = line.iter().zip(line.iter().skip(1)).any(|(flag, value)| flag == "--output" && value == "json");
    let joined = line.iter().any(|word| word == "--output=json");
    let variable = std::env::var_os("WALRECV_OUTPUT").is_some_and(|value| value == "json");
    if after || joined || variable { output::Format::Json } else { output::Format::Text }
}

async fn command(cli: Cli) -> Result<u8> {
    let common = cli.common;
    match cli.command {
        Command::Init(args) => init::run(&common, &args).await.map(done),
        Command::Run => run::run(&common).await.map(done),
        Command::Status(args) => status::run(&common, &args).await,
        Command::Receive(args) => receive::run(&common, &args).await.map(done),
        Command::Backup(args) => backup::run(&common, &args).await.map(done),
        Command::Restore(args) => interruptible(restore::run(&common, &args)).await.map(done),
        Command::WalFetch(args) => Ok(wal_fetch::run(&common, &args).await),
        Command::WalPrefetch(args) => wal_fetch::ahead(&common, &args).await.map(done),
        Command::Expire(args) => interruptible(expire::run(&common, &args)).await.map(done),
        Command::Drill(args) => leaving_nothing(drill::run(&common, &args)).await.map(done),
        Command::Extract(args) => leaving_nothing(extract::run(&common, &args)).await.map(done),
        Command::Find(args) => interruptible(find::run(&common, &args)).await.map(done),
        Command::List(args) if args.windows => windows::run(&common).await.map(done),
        Command::List(_) => list::run(&common).await.map(done),
        Command::Show(args) => interruptible(show::run(&common, &args)).await.map(done),
        Command::Verify(args) => interruptible(verify::run(&common, &args)).await.map(done),
        Command::Repo(RepoCommand::Stats) => interruptible(repo::stats(&common)).await.map(done),
        Command::Check => check::run(&common).await.map(done),
        Command::Catalog(CatalogCommand::Rebuild) => interruptible(catalog::rebuild(&common)).await.map(done),
        Command::Catalog(CatalogCommand::Verify) => interruptible(catalog::verify(&common)).await.map(done),
        Command::Catalog(CatalogCommand::Dump) => catalog::dump(&common).await.map(done),
        Command::Slot(SlotCommand::Create) => slot::create(&common).await.map(done),
        Command::Slot(SlotCommand::Show) => slot::show(&common).await.map(done),
        Command::Slot(SlotCommand::Drop) => slot::drop(&common).await.map(done),
    }
}

fn done(_: ()) -> u8 {
    0
}

/// Runs a job until it ends or a signal comes. Jobs leave nothing half-done that a later run could mistake for whole.
async fn interruptible<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    until(context::Signals::new()?, job).await
}

/// The same for a job with a scratch server, which must not outlive it: the end of its terminal is a signal too.
async fn leaving_nothing<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    until(context::Signals::with_hangup()?, job).await
}

async fn until<T>(mut signals: context::Signals, job: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        outcome = job => outcome,
        name = signals.next() => Err(Error::new(Kind::Interrupted, format!("interrupted by {name}"))),
    }
}

/// The time as every other line on standard error has it.
struct AsLines;

impl FormatTime for AsLines {
    fn format_time(&self, to: &mut Writer<'_>) -> std::fmt::Result {
        to.write_str(&output::time(jiff::Timestamp::now()))
    }
}

fn start_tracing(verbose: u8) {
    let default = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let format = format.with_ansi(output::watched()).with_target(false).with_timer(AsLines);
    let _ = match EnvFilter::try_from_env("WALRECV_LOG") {
        Ok(filter) => tracing_subscriber::registry().with(format.with_filter(filter)).try_init(),
        // The other kind takes a tenth of a call of wal-fetch to set up.
        Err(_) => {
            let filter = Targets::new().with_target("walrecv", default);
            tracing_subscriber::registry().with(format.with_filter(filter)).try_init()
        }
    };
}
