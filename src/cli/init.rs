//! `walrecv init`: check the server, make repository, keys and configuration, in an order that leaves nothing half-made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use zeroize::Zeroizing;

use super::args::{Common, InitArgs};
use super::context::{env, read_private};
use super::output;
use crate::archive::key_files;
use crate::config::DEFAULT_CONFIG;
use crate::config::file::{ClusterTable, ConfigFile};
use crate::config::settings::{check_cluster_name, check_slot_name};
use crate::disk::durable;
use crate::disk::medium::Disk;
use crate::error::{Context as _, Error, Kind, Result};
use crate::keys::setup::{self, Recipient, RepositoryKeys};
use crate::net::{Connection, Conninfo, Mode};
use crate::repo::{Found, Repository, names};
use crate::seal::content::repository::{Encryption, RepositoryFile};
use crate::seal::key::RepositorySecret;

/// How long a new repository's first objects may take.
const PUT_LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// What may stand in a directory that is to become a repository: a new file system's own folder, and what an interrupted init leaves.
const LEFTOVERS: [&str; 2] = ["lost+found", "keys"];

/// Where init writes: the configuration, and two files beside it.
struct Places {
    config: PathBuf,
    secret: PathBuf,
    identity: PathBuf,
}

impl Places {
    fn new(common: &Common) -> Result<Places> {
        let config = common.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG));
        let config = std::path::absolute(&config)
            .map_err(|e| Error::new(Kind::Usage, format!("not a path: {}", config.display())).caused_by(e))?;
        let folder = config.parent().unwrap_or(Path::new("/")).to_owned();
        let places =
            Places { config, secret: folder.join("walrecv-secret"), identity: folder.join("walrecv-identity.txt") };
        if !folder.is_dir() {
            return Err(Error::new(Kind::Usage, format!("{} is no directory", folder.display()))
                .hint("make it first: the configuration and the secrets go there"));
        }
        for path in [&places.config, &places.secret, &places.identity] {
            if path.exists() {
                return Err(Error::new(Kind::Usage, format!("{} exists already", path.display()))
                    .hint("init never overwrites; choose another --config, or move the old files away"));
            }
        }
        Ok(places)
    }
}

/// What the server said of itself.
struct Server {
    version: u32,
    system: String,
    segment_size: String,
    remarks: Vec<String>,
}

pub async fn run(common: &Common, args: &InitArgs) -> Result<()> {
    let cluster = common.cluster.clone().unwrap_or_else(|| "main".to_owned());
    check_cluster_name(&cluster)?;
    if let Some(slot) = &args.slot {
        check_slot_name(slot).map_err(|problem| Error::new(Kind::Usage, format!("--slot: {problem}")))?;
    }
    let url = common.repo.as_deref().ok_or_else(|| {
        Error::new(Kind::Usage, "no repository named")
            .hint("say where: --repo file:///srv/walrecv or --repo s3://bucket/prefix")
    })?;
    let places = Places::new(common)?;
    let conninfo = Conninfo::parse(&args.dsn, &env).context("--dsn")?;
    let repo = Repository::open(url, &env)?;
    let mut connection = Connection::connect(&conninfo, Mode::Physical, "").await?;
    let server = check_server(&mut connection, &conninfo).await?;
    refuse_existing(&repo).await?;
    let recipients = recipients(args)?;

    // First what can be refused: a slot of that name may exist, for somebody else's archive.
    let slot = args.slot.as_deref().filter(|_| args.create_slot);
    if let Some(slot) = slot {
        connection.create_slot(slot, false, true).await.context("nothing was made")?;
    }
    let mut made = Made::default();
    match make(&repo, &cluster, url, args, &places, recipients, &mut made).await {
        Ok(()) => {}
        Err(error) => {
            made.undo();
            if let Some(slot) = slot {
                let _ = connection.drop_slot(slot).await;
            }
            return Err(error);
        }
    }
    report(common, args, url, &cluster, &places, &server, made.identity)
}

/// Asks the server all that streaming needs; refuses what cannot work, remarks on what is odd.
async fn check_server(connection: &mut Connection, conninfo: &Conninfo) -> Result<Server> {
    let identity = connection.identify_system().await?;
    let wal_level = connection.show("wal_level").await?;
    if wal_level == "minimal" {
        return Err(Error::new(
            Kind::Server,
            "the server has wal_level = minimal: its WAL is not enough to restore from",
        )
        .hint("set wal_level = replica in postgresql.conf and restart the server"));
    }
    let mut remarks = Vec::new();
    let standbys = connection.show("synchronous_standby_names").await?;
    let name = conninfo.application_name().to_lowercase();
    if standbys.to_lowercase().contains(&name) || standbys.contains('*') {
        remarks.push(format!("synchronous_standby_names = '{standbys}' may choose walrecv: commits then wait for it"));
    }
    if connection.show("full_page_writes").await? == "off" {
        remarks.push("full_page_writes is off: a backup may contain torn pages that WAL cannot repair".to_owned());
    }
    Ok(Server {
        version: connection.version_num(),
        system: identity.system.to_string(),
        segment_size: connection.show("wal_segment_size").await?,
        remarks,
    })
}

async fn refuse_existing(repo: &Repository) -> Result<()> {
    if let Some(root) = repo.local_root().filter(|root| root.exists()) {
        let unreadable = |e| Error::new(Kind::Repository, format!("cannot read {}", root.display())).caused_by(e);
        let mut entries = std::fs::read_dir(root).map_err(unreadable)?;
        if !root.join(names::REPOSITORY_FILE).exists()
            && entries.any(|entry| entry.is_ok_and(|e| !LEFTOVERS.iter().any(|name| e.file_name() == *name)))
        {
            return Err(Error::new(Kind::Repository, format!("{} is not empty and is no repository", root.display()))
                .hint("name an empty or new directory"));
        }
    } else if repo.local_root().is_some() {
        return Ok(());
    }
    if repo.get(names::REPOSITORY_FILE).await?.is_some() {
        return Err(Error::new(Kind::Repository, format!("{} is a repository already", repo.url()))
            .hint("use its own walrecv.toml and secret, or name another place"));
    }
    Ok(())
}

fn recipients(args: &InitArgs) -> Result<Vec<Recipient>> {
    let mut all: Vec<Recipient> = args.recipient.iter().cloned().map(Recipient::Age).collect();
    if let Some(path) = &args.passphrase_file {
        let text = read_private(path, "passphrase")?;
        let phrase = text.trim_end_matches(['\r', '\n']);
        if phrase.is_empty() {
            return Err(Error::new(Kind::Usage, format!("the passphrase in {} is empty", path.display())));
        }
        all.push(Recipient::Passphrase(Zeroizing::new(phrase.to_owned())));
    }
    Ok(all)
}

/// Local files made so far, so that a failure can take them away again.
#[derive(Default)]
struct Made {
    files: Vec<PathBuf>,
    /// A repository directory that was made here.
    repository: Option<PathBuf>,
    /// Path of a private key file that was made here.
    identity: Option<PathBuf>,
}

impl Made {
    fn file(&mut self, path: &Path, text: &str) -> Result<()> {
        durable::create_new(path, text.as_bytes(), 0o600)?;
        self.files.push(path.to_owned());
        Ok(())
    }

    fn undo(&self) {
        for path in &self.files {
            let _ = durable::remove(&Disk, path);
        }
        if let Some(root) = &self.repository {
            // Only while it is empty: what was stored is not deleted.
            let _ = durable::remove_empty_dir(root);
        }
    }
}

/// Local secrets first (a repository whose keys nobody has is worse than none), then key files, `walrecv.json` last, then the configuration.
async fn make(
    repo: &Repository,
    cluster: &str,
    url: &str,
    args: &InitArgs,
    places: &Places,
    mut recipients: Vec<Recipient>,
    made: &mut Made,
) -> Result<()> {
    if let Some(root) = repo.local_root().filter(|root| !root.exists()) {
        let hint = "name a folder that this user may make, on a disk: --repo file:///srv/walrecv";
        repo.make_root().await.map_err(|error| error.or_hint(hint))?;
        made.repository = Some(root.to_owned());
        if args.no_encryption {
            // Whoever reads the files reads the data.
            durable::make_private(root)?;
        }
    }
    let id = setup::random_repository_id()?;
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut config = ConfigFile {
        repo: url.to_owned(),
        identity: None,
        secret_file: None,
        identity_file: None,
        passphrase_file: None,
        state_dir: None,
        clusters: BTreeMap::from([(cluster.to_owned(), table(args))]),
    };
    let mut secret = RepositorySecret::published();
    if !args.no_encryption {
        let keys = setup::generate();
        secret = keys.secret.clone();
        if recipients.is_empty() {
            let (private, public) = setup::generate_recipient();
            made.file(&places.identity, &private)?;
            made.identity = Some(places.identity.clone());
            config.identity_file = Some(file_name(&places.identity));
            recipients.push(Recipient::Age(public));
        }
        made.file(&places.secret, &setup::secret_to_text(&keys.secret))?;
        store_keys(repo, &keys, &recipients).await?;
        config.identity = Some(keys.public.clone());
        config.secret_file = Some(file_name(&places.secret));
        if let Some(path) = &args.passphrase_file {
            config.passphrase_file =
                Some(std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string());
        }
    }
    let encryption = if args.no_encryption { Encryption::None } else { Encryption::Age };
    let about = RepositoryFile::new(id, encryption, now, &secret);
    put(repo, names::REPOSITORY_FILE, about.encode().into()).await?;
    made.file(&places.config, &config.render())
}

async fn store_keys(repo: &Repository, keys: &RepositoryKeys, recipients: &[Recipient]) -> Result<()> {
    for recipient in recipients {
        let (name, file) = setup::wrap_for(keys, recipient)?;
        put(repo, &key_files::name_of(&keys.secret, &keys.public, &name, &file), file).await?;
    }
    Ok(())
}

async fn put(repo: &Repository, name: &str, bytes: Bytes) -> Result<()> {
    let same = bytes.clone();
    let judge =
        move |found: &[u8]| if found == &same[..found.len().min(same.len())] { Found::Ours } else { Found::Different };
    repo.put_once(name, &[bytes], &judge, PUT_LIMIT).await.map(|_| ())
}

fn table(args: &InitArgs) -> ClusterTable {
    ClusterTable {
        dsn: args.dsn.clone(),
        slot: args.slot.clone(),
        flush_interval: None,
        compression: None,
        shutdown_grace: None,
        stall_timeout: None,
        spool_dir: None,
        on_gap: None,
        slot_after_failover: None,
        give_up_at: None,
        backup: None,
        drill: None,
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn report(
    common: &Common,
    args: &InitArgs,
    url: &str,
    cluster: &str,
    places: &Places,
    server: &Server,
    identity: Option<PathBuf>,
) -> Result<()> {
    if common.output == output::Format::Json {
        output::json(&serde_json::json!({
            "repository": url, "cluster": cluster, "config": places.config, "identity_file": identity,
            "encrypted": !args.no_encryption, "slot_created": args.create_slot,
            "server": { "server_version_num": server.version, "system_identifier": server.system, "wal_segment_size": server.segment_size },
            "remarks": server.remarks,
        }));
        return Ok(());
    }
    let major = server.version / 10000;
    output::line(format!(
        "server       PostgreSQL {major}, system identifier {}, segments of {}",
        server.system, server.segment_size
    ));
    output::line(format!("repository   {url}{}", if args.no_encryption { " (NOT encrypted)" } else { " (encrypted)" }));
    output::line(format!("configured   {} (cluster {cluster})", places.config.display()));
    if args.create_slot {
        output::line(format!(
            "slot         {} created; start `walrecv receive` soon, it holds WAL back on the server",
            args.slot.as_deref().unwrap_or("")
        ));
    } else if let Some(slot) = &args.slot {
        output::line(format!("slot         {slot} is not created yet: `walrecv slot create`"));
    }
    if let Some(path) = identity {
        output::line(format!("private key  {}", path.display()));
        output::line(
            "             KEEP A COPY ELSEWHERE, with walrecv.toml and walrecv-secret: without the key nothing can be restored",
        );
    }
    for remark in &server.remarks {
        output::line(format!("remark       {remark}"));
    }
    output::line("next         walrecv receive   (keep it running), then walrecv backup");
    Ok(())
}
