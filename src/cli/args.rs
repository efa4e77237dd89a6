//! The command line as it is typed. `--help` is written to teach.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::examples;
use super::output::Format;

/// Stream PostgreSQL's WAL into a repository, take base backups, restore to any commit.
#[derive(Debug, Parser)]
#[command(name = "walrecv", version, propagate_version = true, arg_required_else_help = true, after_help = AFTER)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

const AFTER: &str = "\
The usual order:
  walrecv init --repo file:///srv/walrecv --dsn 'host=db1 user=walrecv' --slot walrecv_main --create-slot
  walrecv receive        keep this running: it streams WAL, durable within a second (`run`: all clusters)
  walrecv status         how it goes
  walrecv backup         a base backup; streams its WAL itself where nobody else does
  walrecv list           what can be restored (--windows draws it)
  walrecv restore --target-time '2026-11-21 14:05:00+00' --pgdata /srv/restored --start
  walrecv find --last 2h  what was dropped or deleted, and how to get it back
  walrecv extract --table orders --before-xid 7421 --file orders.sql  one table as it was
  walrecv drill          prove that all of this works, and how long it takes
  walrecv expire --backup ID     delete a backup; any other stays whole

Exit codes: 0 done, 1 failed, 2 usage, 10 repository, 11 busy, 12 key, 13 other cluster, 14 version, 15 gap,
16 corrupt, 17 server, 18 slot, 19 target, 20 retention, 130 interrupted. wal-fetch: 0, 1 (not stored), above 125 (unknown).";

/// In the help, those of a command come first.
const EVERYWHERE: &str = "Options of every command";

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Common {
    /// Configuration file [default: ./walrecv.toml, then /etc/walrecv/walrecv.toml]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "FILE", env = "WALRECV_CONFIG")]
    pub config: Option<PathBuf>,
    /// Cluster in the configuration; not needed while there is one
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "NAME", env = "WALRECV_CLUSTER")]
    pub cluster: Option<String>,
    /// Repository, in place of the configured one
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "URL", env = "WALRECV_REPO")]
    pub repo: Option<String>,
    /// How results are printed
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "FORMAT", default_value = "text", env = "WALRECV_OUTPUT")]
    pub output: Format,
    /// Say more on standard error (twice: everything)
    #[arg(short, long, global = true, help_heading = EVERYWHERE, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a repository, its keys and walrecv.toml, after checking the server
    Init(InitArgs),
    /// Stream every configured cluster, in one process
    Run,
    /// Stream WAL into the repository, in the foreground
    Receive(ReceiveArgs),
    /// Take a base backup now; where no receiver streams the cluster, its WAL too
    #[command(after_help = examples::BACKUP)]
    Backup(BackupArgs),
    /// Restore to a point in time into an empty directory
    #[command(after_help = examples::RESTORE)]
    Restore(Box<RestoreArgs>),
    /// What restore_command calls: walrecv wal-fetch %f %p
    #[command(after_help = examples::WAL_FETCH)]
    WalFetch(WalFetchArgs),
    /// What wal-fetch starts beside a recovery
    #[command(hide = true)]
    WalPrefetch(WalPrefetchArgs),
    /// Backups and how far each can be restored; those under way, and interrupted ones
    List(ListArgs),
    /// One backup: sizes, WAL, how it was made, what can be restored from it
    Show(ShowArgs),
    /// What was dropped, truncated, deleted or updated in masses in a window of time, with the restore that stops just before
    #[command(after_help = examples::FIND)]
    Find(FindArgs),
    /// Bring tables or a database back from a point in time, as a file of SQL, without touching the server
    #[command(after_help = examples::EXTRACT)]
    Extract(Box<ExtractArgs>),
    /// Restore for real into a scratch server, check it, ask it, time it, and remove it
    #[command(after_help = examples::DRILL)]
    Drill(Box<DrillArgs>),
    /// Read back what is stored and say whether it is whole (exit 16 damaged, 15 gap in WAL)
    Verify(VerifyArgs),
    /// The repository itself: how much is stored, of what, and how it grows
    #[command(subcommand)]
    Repo(RepoCommand),
    /// Delete backups without harm to any other, and free what nothing needs any more
    #[command(after_help = examples::EXPIRE)]
    Expire(ExpireArgs),
    /// How the streams are: state, lag, time to durable, slots (exit 1 when one needs attention)
    Status(StatusArgs),
    /// Can this server be streamed, is the slot healthy, can the repository be written
    Check,
    /// The replication slot: create, show, drop
    #[command(subcommand)]
    Slot(SlotCommand),
    /// The local index of what is stored: make it again, compare it with the repository, print it
    #[command(subcommand)]
    Catalog(CatalogCommand),
}

/// A line that is a call of `wal-fetch`, by itself: the same options as in [`Cli`], and none of the other commands. Help is the whole's.
#[derive(Debug, Parser)]
#[command(name = "walrecv", disable_help_flag = true, disable_help_subcommand = true)]
pub struct CallOfServer {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: CommandOfServer,
}

#[derive(Debug, Subcommand)]
pub enum CommandOfServer {
    WalFetch(WalFetchArgs),
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Connection string as libpq reads it: 'host=db1 user=walrecv' or postgresql://walrecv@db1
    #[arg(long, value_name = "CONNINFO", env = "WALRECV_DSN", hide_env_values = true)]
    pub dsn: String,
    /// Replication slot that `receive` will use
    #[arg(long, value_name = "NAME")]
    pub slot: Option<String>,
    /// Create the slot now, with WAL reserved (an unused slot fills the server's disk)
    #[arg(long, requires = "slot")]
    pub create_slot: bool,
    /// Who may restore: an age public key; may be given several times
    #[arg(long, value_name = "AGE1…")]
    pub recipient: Vec<String>,
    /// Who may restore: whoever knows the passphrase in this file
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
    /// Store without encryption: whoever reads the repository reads the data
    #[arg(long, conflicts_with_all = ["recipient", "passphrase_file"])]
    pub no_encryption: bool,
}

#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// How often the unfinished segment is made durable; 0 answers every commit
    #[arg(long, value_name = "TIME", env = "WALRECV_FLUSH_INTERVAL")]
    pub flush_interval: Option<String>,
    /// none, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "HOW", env = "WALRECV_COMPRESSION")]
    pub compression: Option<String>,
    /// Stop once everything up to this LSN is durable; fail after 15 s where another receiver has the slot (11), or where what is stored cannot be compared (17)
    #[arg(long, value_name = "LSN")]
    pub until: Option<String>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Backup: its id, the beginning of it that no other has, or `latest`
    #[arg(value_name = "ID")]
    pub backup: String,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Open every byte of packs and WAL (needs the private key), not only names, lengths and indexes
    #[arg(long)]
    pub deep: bool,
    /// Only this backup and the WAL that it needs: its id, the beginning of it, or `latest`
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Objects read side by side; each takes up to 40 MiB of memory while it is opened
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// How long an object is asked for while the store fails
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub patience: String,
    /// Do not note the result in the repository
    #[arg(long)]
    pub no_record: bool,
    /// Private key file of a recipient, in place of the configured one
    #[arg(long, value_name = "FILE", env = "WALRECV_IDENTITY_FILE")]
    pub identity_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct FindArgs {
    /// Commits of this time and later: '2026-11-21 14:05:00+00' (local time without a zone), or '10 min ago'
    #[arg(long, value_name = "TIME", conflicts_with = "last")]
    pub from: Option<String>,
    /// Commits of this time and earlier [default: all that is stored]
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// As --from, so long before now [default: 2h, where --from is not given]
    #[arg(long, value_name = "TIME")]
    pub last: Option<String>,
    /// How many rows of one table, deleted or updated by one transaction, are a mass
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rows: u64,
    /// How many of the commits with the most WAL are shown beside: of at least --rows rows or 1 MiB, and 8 times the median of the window
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub largest: u16,
    /// Only what was done to this table: orders, or public.orders (what has no name is shown too)
    #[arg(long, value_name = "NAME")]
    pub table: Option<String>,
    /// Only what was done in this database: its name or object id
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// Numbers in place of names: saves reading the maps and catalogs of backups
    #[arg(long)]
    pub no_names: bool,
    /// Timeline to look at: a decimal number [default: the newest that continues a backup's]
    #[arg(long, value_name = "TLI", value_parser = clap::value_parser!(u32).range(1..))]
    pub timeline: Option<u32>,
    /// Private key file of a recipient, in place of the configured one
    #[arg(long, value_name = "FILE", env = "WALRECV_IDENTITY_FILE")]
    pub identity_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Bytes by kind, what each backup alone holds, dead space, growth (lists everything and reads all maps)
    Stats,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Look again every second until a signal
    #[arg(long)]
    pub watch: bool,
    /// All numbers in the text format that Prometheus reads (so not with --output json); ends with 0 whatever they say
    #[arg(long, conflicts_with = "watch")]
    pub metrics: bool,
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Label: stands in backup_label, in `list` and `show`
    #[arg(long, value_name = "TEXT", default_value = "walrecv")]
    pub label: String,
    /// When the server makes its checkpoint: at once, or spread over time
    #[arg(long, value_name = "WHEN", value_parser = ["fast", "spread"], default_value = "fast")]
    pub checkpoint: String,
    /// Most that the server sends in a second, as pg_basebackup has it: in kB (`k` or nothing) or MB (`M`), 32k to 1024M
    #[arg(long, value_name = "RATE", value_parser = super::backup::max_rate)]
    pub max_rate: Option<u32>,
    /// Have everything sent and store everything, compared with nothing; of interrupted backups only what a --full one left is used
    #[arg(long)]
    pub full: bool,
    /// Of what is stored, in place of the configured one: none, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "HOW", env = "WALRECV_COMPRESSION")]
    pub compression: Option<String>,
    /// What the server compresses with before it sends, where the network is the limit (PostgreSQL 15 and later): none, lz4, zstd or zstd:LEVEL
    #[arg(long, value_name = "HOW", default_value = "none")]
    pub server_compression: String,
    /// Say how it goes, also where nobody watches: a line every few seconds; JSON lines with --output json
    #[arg(long, conflicts_with = "quiet")]
    pub progress: bool,
    /// Say nothing until it is done
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct ExpireArgs {
    /// Backup to delete: an id, the beginning of one, or `latest`; may be given several times. Without it, only what earlier runs began is finished
    #[arg(long, value_name = "ID")]
    pub backup: Vec<String>,
    /// Only say what would go, what would stay, and what that frees
    #[arg(long)]
    pub plan: bool,
    /// Delete also the last complete backup, and one whose manifest is damaged; free space also where no complete backup is seen
    #[arg(long)]
    pub force: bool,
    /// How long what a deleted backup stored stays, for restores that are running
    #[arg(long, value_name = "TIME", default_value = "24h", env = "WALRECV_DELETE_DELAY")]
    pub delete_delay: String,
    /// Do not ask on a terminal
    #[arg(long)]
    pub yes: bool,
}

/// A point in time, or none: a standby has no end.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("target").required(true).args(TARGETS))]
pub struct TargetArgs {
    #[command(flatten)]
    pub point: PointArgs,
    /// A standby: goes on with what the archive gets, and with what --primary-conninfo sends
    #[arg(long, conflicts_with_all = ["exclusive", "target_timeline", "target_action", "scratch"])]
    pub standby: bool,
}

/// One of these must be named.
const TARGETS: [&str; 7] =
    ["target_time", "target_lsn", "target_xid", "target_name", "target_immediate", "latest", "standby"];

/// A point in time.
#[derive(Clone, Debug, Default, Args)]
#[group(id = "point", multiple = false)]
pub struct PointArgs {
    /// Last moment to keep: '2026-11-21 14:05:00+00' (local time without a zone), or '10 min ago'
    #[arg(long, value_name = "TIME")]
    pub target_time: Option<String>,
    /// Position to recover to
    #[arg(long, value_name = "LSN")]
    pub target_lsn: Option<String>,
    /// Transaction to recover to, as txid_current() or pg_current_xact_id() tells it: its commit or abort
    #[arg(long, value_name = "XID", value_parser = clap::value_parser!(u64).range(3..))]
    pub target_xid: Option<u64>,
    /// Restore point made by pg_create_restore_point()
    #[arg(long, value_name = "NAME")]
    pub target_name: Option<String>,
    /// As soon as the backup is consistent
    #[arg(long)]
    pub target_immediate: bool,
    /// The end of what is stored
    #[arg(long)]
    pub latest: bool,
}

/// A server that is thrown away again.
#[derive(Debug, Args)]
pub struct ScratchArgs {
    /// Where the folder of the scratch server is made, which goes at the end [default: state_dir; for root /var/tmp]
    #[arg(long, value_name = "DIR", env = "WALRECV_WORK_DIR")]
    pub work_dir: Option<PathBuf>,
    /// PostgreSQL's programs, of the backup's major version [default: /usr/lib/postgresql/N/bin, /usr/pgsql-N/bin, the PATH]
    #[arg(long, value_name = "DIR", env = "WALRECV_PG_BINDIR")]
    pub pg_bindir: Option<PathBuf>,
    /// System user that shall own the files and run the server, when walrecv is root [default: postgres]
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// Files laid back, and tables checked, side by side
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Give up, and remove everything, when recovery has replayed nothing for so long; 0: never
    #[arg(long, value_name = "TIME", default_value = "30min")]
    pub stall_limit: String,
    /// Private key file of a recipient, in place of the configured one
    #[arg(long, value_name = "FILE", env = "WALRECV_IDENTITY_FILE")]
    pub identity_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ExtractArgs {
    #[command(flatten)]
    pub point: PointArgs,
    /// Just before this transaction's commit: the same as --target-xid XID --exclusive
    #[arg(long, value_name = "XID", value_parser = clap::value_parser!(u64).range(3..), conflicts_with = "point")]
    pub before_xid: Option<u64>,
    /// Stop just before the target, not just after it
    #[arg(long)]
    pub exclusive: bool,
    /// Timeline to follow: a decimal number, current (the one of the backup) or latest (the newest that continues a backup's) [default: latest]
    #[arg(long, value_name = "TLI")]
    pub target_timeline: Option<String>,
    /// Backup to start from: its id, the beginning of it, or latest [default: the newest that can reach the target]
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Table, view or sequence: orders, public.orders, or '"Odd Name"'; may be given several times [default: all of --database]
    #[arg(long, value_name = "NAME", required_unless_present = "database")]
    pub table: Vec<String>,
    /// Database [default: the one in which the tables are found]
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// The file to write, which must not be there
    #[arg(long, short, value_name = "FILE")]
    pub file: PathBuf,
    /// Definitions without rows
    #[arg(long, conflicts_with = "data_only")]
    pub schema_only: bool,
    /// Rows without definitions: for a table that is there
    #[arg(long)]
    pub data_only: bool,
    #[command(flatten)]
    pub scratch: ScratchArgs,
}

/// A check that a drill leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Skip {
    Amcheck,
    Checksums,
}

#[derive(Debug, Args)]
pub struct DrillArgs {
    /// As for restore; with --target-time random to a moment between the backup and the newest commit [default: --latest]
    #[command(flatten)]
    pub point: PointArgs,
    /// Stop just before the target, not just after it
    #[arg(long)]
    pub exclusive: bool,
    /// Timeline to follow: a decimal number, current (the one of the backup) or latest (the newest that continues a backup's) [default: latest]
    #[arg(long, value_name = "TLI")]
    pub target_timeline: Option<String>,
    /// With --target-time random: draws the same moment again
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Backup to restore: its id, the beginning of it, or latest [default: the newest that can reach the target]
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// SQL that must return one row that is true; may be given several times, beside drill.assert of the configuration
    #[arg(long = "assert", value_name = "SQL")]
    pub assert: Vec<String>,
    /// Database in which assertions are asked [default: drill.database, else postgres]
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// Fail where more than this would be missing if the server were lost now [default: drill.rpo]
    #[arg(long, value_name = "TIME")]
    pub rpo: Option<String>,
    /// Fail where it takes longer until the restored server answers [default: drill.rto]
    #[arg(long, value_name = "TIME")]
    pub rto: Option<String>,
    /// A check to leave out: amcheck (on 13 bt_index_check) or checksums; may be given several times
    #[arg(long, value_name = "CHECK", hide_possible_values = true)]
    pub skip: Vec<Skip>,
    /// Write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Do not note the result in the repository
    #[arg(long)]
    pub no_record: bool,
    #[command(flatten)]
    pub scratch: ScratchArgs,
}

/// All but `--standby`, of which an option speaks that only it has: clap demands nothing that is in conflict with what is there.
const OTHER_TARGETS: [&str; 6] =
    ["target_time", "target_lsn", "target_xid", "target_name", "target_immediate", "latest"];

#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub target: TargetArgs,
    /// Stop just before the target, not just after it
    #[arg(long)]
    pub exclusive: bool,
    /// Timeline to follow: a decimal number, current (the one of the backup) or latest (the newest that continues a backup's) [default: latest]
    #[arg(long, value_name = "TLI")]
    pub target_timeline: Option<String>,
    /// What the server does at the target
    #[arg(long, value_name = "ACTION", value_parser = ["promote", "pause", "shutdown"], default_value = "promote")]
    pub target_action: String,
    /// With --standby: where it streams from (the server's own replication user and password, as in primary_conninfo)
    #[arg(long, requires = "standby", conflicts_with_all = OTHER_TARGETS, value_name = "CONNINFO")]
    pub primary_conninfo: Option<String>,
    /// With --standby: the slot that it uses there
    #[arg(long, requires = "primary_conninfo", value_name = "NAME")]
    pub primary_slot: Option<String>,
    /// Backup to start from: its id, the beginning of it, or latest [default: the newest that can reach the target]
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
    /// Directory to restore into: absent, empty, or left by an interrupted restore, which is gone on with
    #[arg(long, value_name = "DIR", required_unless_present = "plan")]
    pub pgdata: Option<PathBuf>,
    /// Over a data directory of the same cluster whose server is stopped: keep what of it is right already, fetch the rest, remove what the backup does not have
    #[arg(long)]
    pub delta: bool,
    /// Restore these databases alone (names, or object ids), and what every cluster has; the others refuse every session and shall be dropped
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', conflicts_with_all = ["delta", "standby"])]
    pub databases: Vec<String>,
    /// Where a tablespace goes: OLDDIR=NEWDIR; may be given several times
    #[arg(long, value_name = "OLD=NEW", requires = "pgdata")]
    pub tablespace_mapping: Vec<String>,
    /// Only say where the restore would land; with --pgdata also whether it may go there
    #[arg(long)]
    pub plan: bool,
    /// Start the server and wait until it has reached the target
    #[arg(long)]
    pub start: bool,
    /// With --start: wait no longer, and leave the server as it is, when recovery has replayed nothing for so long; 0: for ever
    #[arg(long, value_name = "TIME", default_value = "30min")]
    pub stall_limit: String,
    /// With --start: a server of its own socket and port that nobody else reaches
    #[arg(long, requires = "start")]
    pub scratch: bool,
    /// Port of the scratch server: it has no TCP, so this only names its socket [default: 5432]
    #[arg(long, requires = "scratch", value_name = "PORT")]
    pub port: Option<u16>,
    /// PostgreSQL's programs, of the backup's major version [default: /usr/lib/postgresql/N/bin, /usr/pgsql-N/bin, the PATH]
    #[arg(long, value_name = "DIR", env = "WALRECV_PG_BINDIR")]
    pub pg_bindir: Option<PathBuf>,
    /// System user that shall own the files and run the server, when walrecv is root [default: postgres]
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// Files laid back side by side
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Leave archive_mode as production had it (the restored server may then archive into production's archive)
    #[arg(long)]
    pub keep_archive_mode: bool,
    /// Leave subscriptions at work (the restored server may then take production's place in logical replication)
    #[arg(long)]
    pub keep_subscriptions: bool,
    /// Disk space for WAL that is fetched before the recovering server asks for it; 0: none is [default: 512MB]
    #[arg(long, value_name = "SIZE", env = "WALRECV_PREFETCH")]
    pub prefetch: Option<String>,
    /// Private key file of a recipient, in place of the configured one
    #[arg(long, value_name = "FILE", env = "WALRECV_IDENTITY_FILE")]
    pub identity_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct WalFetchArgs {
    /// Name of the WAL segment or history file (%f)
    pub file: String,
    /// Where to put it (%p)
    pub path: PathBuf,
    /// With standby.signal: how long an unknown answer is retried before it counts as absent
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub standby_wait: String,
    /// Disk space, in pg_wal/walrecv, for WAL that is fetched before the server asks for it; 0: none is
    #[arg(long, value_name = "SIZE", default_value = "512MB", env = "WALRECV_PREFETCH")]
    pub prefetch: String,
    /// Private key file of a recipient, in place of the configured one
    #[arg(long, value_name = "FILE", env = "WALRECV_IDENTITY_FILE")]
    pub identity_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Draw what can be restored instead, timeline by timeline, with the holes
    #[arg(long)]
    pub windows: bool,
}

#[derive(Debug, Args)]
pub struct WalPrefetchArgs {
    /// Disk space for what is fetched
    #[arg(long, value_name = "SIZE")]
    pub prefetch: String,
    /// Private key file of a recipient, in place of the configured one
    #[arg(long, value_name = "FILE", env = "WALRECV_IDENTITY_FILE")]
    pub identity_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum SlotCommand {
    /// Create the configured slot, with WAL reserved from now on
    Create,
    /// Show the slot as the server sees it
    Show,
    /// Drop the slot: the server may then remove WAL that is not stored yet
    Drop,
}

#[derive(Debug, Subcommand)]
pub enum CatalogCommand {
    /// Make it anew from the repository (a receiver does that by itself where there is none)
    Rebuild,
    /// Compare it with the repository and say what differs
    Verify,
    /// Print what it says of the repository
    Dump,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        CallOfServer::command().debug_assert();
    }

    /// Whatever is understood alone is understood as the whole would, and a call of the server is understood alone.
    #[test]
    fn a_call_of_wal_fetch_is_read_by_itself_as_the_whole_reads_it() {
        let alone = |line: &str| match CallOfServer::try_parse_from(line.split(' ')) {
            Ok(CallOfServer { common, command: CommandOfServer::WalFetch(args) }) => {
                Some(format!("{common:?} {args:?}"))
            }
            Err(_) => None,
        };
        let whole = |line: &str| match Cli::try_parse_from(line.split(' ')) {
            Ok(Cli { common, command: Command::WalFetch(args) }) => Some(format!("{common:?} {args:?}")),
            _ => None,
        };
        for call in [
            "walrecv wal-fetch 000000010000000000000001 pg_wal/RECOVERYXLOG",
            "walrecv wal-fetch --prefetch 64MB --standby-wait 1s --identity-file i 00000002.history x",
            "walrecv --config c -v --cluster wal-fetch wal-fetch --output json --repo file:///r f p",
            "walrecv wal-fetch -vv -- -f -p",
        ] {
            assert!(alone(call).is_some(), "{call}");
            assert_eq!(alone(call), whole(call), "{call}");
        }
        for other in [
            "walrecv",
            "walrecv --version",
            "walrecv wal-fetch",
            "walrecv wal-fetch --help",
            "walrecv wal-fetch f p more",
            "walrecv wal-fetch f p --prefetch",
            "walrecv wal-fetch --output xml f p",
            "walrecv help wal-fetch",
            "walrecv --cluster wal-fetch list",
        ] {
            assert_eq!((alone(other), whole(other)), (None, None), "{other}");
        }
    }

    #[test]
    fn a_restore_needs_exactly_one_target() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("walrecv restore --pgdata d").is_err());
        assert!(parse("walrecv restore --pgdata d --latest --target-lsn 0/1").is_err());
        assert!(parse("walrecv restore --latest").is_err());
        assert!(parse("walrecv restore --latest --plan").is_ok());
        assert!(parse("walrecv restore --latest --pgdata d").is_ok());
        assert!(parse("walrecv restore --target-xid 731 --exclusive --plan").is_ok());
        assert!(parse("walrecv restore --target-xid 2 --plan").is_err(), "no transaction that commits");
        assert!(parse("walrecv restore --target-immediate --plan").is_ok());
        assert!(parse("walrecv restore --standby --pgdata d --primary-conninfo host=db1 --primary-slot s").is_ok());
        assert!(parse("walrecv restore --standby --latest --pgdata d").is_err());
        for refused in ["--exclusive", "--target-timeline 2", "--target-action pause", "--scratch --start"] {
            assert!(parse(&format!("walrecv restore --standby --pgdata d {refused}")).is_err(), "{refused}");
        }
        assert!(parse("walrecv restore --latest --pgdata d --primary-conninfo host=db1").is_err());
        assert!(parse("walrecv restore --latest --pgdata d --databases a,b --databases c").is_ok());
        assert!(
            parse("walrecv restore --latest --pgdata d --databases a --delta").is_err(),
            "it would lose all others"
        );
        assert!(parse("walrecv restore --standby --pgdata d --databases a").is_err(), "its WAL never ends");
    }
}
