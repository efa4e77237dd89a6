//! The second connection: idle, so that a shutdown of the server shows on it at once, and the place for SQL where that is allowed.
//!
//! A server that shuts down ends idle walsenders with 57P01 immediately (`HandleWalSndInitStopping`), while a stream that lags is told nothing and would be
//! waited for without limit (`WalSndLoop`). An ordinary SQL connection would be wrong here: a smart shutdown waits for it.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::observe::{Observer, ReceiveEvent};
use crate::backoff::Backoff;
use crate::error::Result;
use crate::net::{Connection, Conninfo, Mode};

/// How often the server's settings are read again.
const LOOK: Duration = Duration::from_secs(60);
/// SQLSTATE `admin_shutdown`.
const ADMIN_SHUTDOWN: &str = "57P01";

/// What the second connection noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The server is shutting down, or does not let the second connection in again.
    Stopping,
    /// Whether `synchronous_standby_names` lists this receiver.
    Synchronous(bool),
}

/// A watched second connection; it is closed when this is dropped.
pub struct Sentinel {
    signs: mpsc::UnboundedReceiver<Sign>,
    task: JoinHandle<()>,
}

impl Sentinel {
    /// The next sign. Never returns once there can be none. Cancel safe.
    pub async fn next(&mut self) -> Sign {
        match self.signs.recv().await {
            Some(sign) => sign,
            None => std::future::pending().await,
        }
    }

    /// Watches `connection`; without one, tries to open it from time to time.
    pub fn watch(info: Conninfo, connection: Option<Connection>, observer: Observer) -> Sentinel {
        let (out, signs) = mpsc::unbounded_channel();
        let task = tokio::spawn(watch(info, connection, out, observer));
        Sentinel { signs, task }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens the second connection: with SQL where pg_hba.conf and the database allow it, else physical.
pub async fn open(info: &Conninfo) -> Result<(Connection, Mode)> {
    match Connection::connect(info, Mode::Database, "").await {
        Ok(connection) => Ok((connection, Mode::Database)),
        Err(error) if error.is_transient() => Err(error),
        Err(_) => Ok((Connection::connect(info, Mode::Physical, "").await?, Mode::Physical)),
    }
}

async fn watch(
    info: Conninfo,
    mut connection: Option<Connection>,
    out: mpsc::UnboundedSender<Sign>,
    observer: Observer,
) {
    let mut backoff =
        Backoff::new(Duration::from_secs(1), Duration::from_secs(30), getrandom::u64().unwrap_or_default());
    while !out.is_closed() {
        let Some(mut current) = connection.take() else {
            tokio::time::sleep(backoff.next_delay()).await;
            connection = open(&info).await.ok().map(|(opened, _)| opened);
            continue;
        };
        backoff.reset();
        let code = observe(&mut current, &info, &out).await;
        let stopping = code.as_deref() == Some(ADMIN_SHUTDOWN);
        if !stopping {
            connection = open(&info).await.ok().map(|(opened, _)| opened);
        }
        // A server that ended the connection otherwise and does not let it in again may be going too: leaving costs one reconnect, staying may cost it
        // its shutdown.
        if stopping || connection.is_none() {
            let _ = out.send(Sign::Stopping);
            observer.tell(ReceiveEvent::ServerStopping);
        }
    }
}

/// Until the connection ends; returns the SQLSTATE that came with the end.
async fn observe(connection: &mut Connection, info: &Conninfo, out: &mpsc::UnboundedSender<Sign>) -> Option<String> {
    loop {
        tokio::select! {
            code = connection.closed() => return code,
            _ = tokio::time::sleep(LOOK) => match connection.show("synchronous_standby_names").await {
                Ok(names) => {
                    let _ = out.send(Sign::Synchronous(lists(&names, info.application_name())));
                }
                Err(_) => return None,
            },
        }
    }
}

/// Whether a `synchronous_standby_names` value names `standby`: in a list with or without FIRST or ANY, in any case, or by `*` (`SyncRepGetStandbyPriority`).
pub fn lists(names: &str, standby: &str) -> bool {
    let inner = match (names.find('('), names.rfind(')')) {
        (Some(open), Some(close)) if open < close => names.get(open + 1..close).unwrap_or(names),
        _ => names,
    };
    inner.split(',').map(str::trim).any(|name| {
        let plain = name.strip_prefix('"').and_then(|n| n.strip_suffix('"')).map(|n| n.replace("\"\"", "\""));
        name == "*" || plain.as_deref().unwrap_or(name).eq_ignore_ascii_case(standby)
    })
}

#[cfg(test)]
mod tests {
    use super::lists;

    #[test]
    fn finds_itself_among_the_synchronous_standbys() {
        for names in ["walrecv", "a, WalRecv", "FIRST 1 (walrecv, b)", "any 2 (a,\"walrecv\")", "*", "2 (x, *)"] {
            assert!(lists(names, "walrecv"), "{names}");
        }
        for names in ["", "walrecv2", "FIRST 1 (a, b)", "\"wal recv\"", "ANY 1 (walrecv_b)"] {
            assert!(!lists(names, "walrecv"), "{names}");
        }
    }
}
