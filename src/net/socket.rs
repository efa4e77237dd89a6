//! Sockets: addresses, connecting, keepalives.

use std::net::{IpAddr, SocketAddr};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};

use super::conninfo::Conninfo;
use super::host::{Host, Place, socket_file};
use super::link::Stream;
use crate::error::{Error, Kind, Result};

/// One place to try.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Socket(std::path::PathBuf),
    Tcp(SocketAddr),
    /// Whatever the connection string's dialer reaches.
    Dialer,
}

/// A connected socket, before TLS.
pub(super) enum Raw {
    Unix(UnixStream),
    /// With the server's address.
    Tcp(TcpStream, SocketAddr),
    Dialed(Box<dyn Stream>),
}

impl Address {
    /// `None` for a socket file.
    pub(super) fn ip(&self) -> Option<IpAddr> {
        match self {
            Address::Socket(_) | Address::Dialer => None,
            Address::Tcp(address) => Some(address.ip()),
        }
    }
}

impl Raw {
    /// Our own address, as the server is likely to see it.
    pub(super) fn local_ip(&self) -> Option<IpAddr> {
        match self {
            Raw::Unix(_) | Raw::Dialed(_) => None,
            Raw::Tcp(stream, _) => stream.local_addr().ok().map(|address| address.ip()),
        }
    }
}

/// Every address of the host, in the order of the resolver.
pub(super) async fn addresses(info: &Conninfo, host: &Host) -> Result<Vec<Address>> {
    if info.dialer.is_some() {
        return Ok(vec![Address::Dialer]);
    }
    let (name, address) = match &host.place {
        Place::Socket(directory) => return Ok(vec![Address::Socket(socket_file(directory, host.port))]),
        Place::Tcp { name, address } => (name.as_deref().unwrap_or("localhost"), *address),
    };
    if let Some(address) = address.or_else(|| name.parse().ok()) {
        return Ok(vec![Address::Tcp(SocketAddr::new(address, host.port))]);
    }
    let unknown = |problem: String| {
        Error::new(Kind::Server, format!("cannot look up the address of {name}: {problem}"))
            .transient()
            .hint("check the host in the connection string and the resolver of this machine")
    };
    let found: Vec<Address> = tokio::net::lookup_host((name, host.port))
        .await
        .map_err(|error| unknown(error.to_string()))?
        .map(Address::Tcp)
        .collect();
    if found.is_empty() { Err(unknown("no address".to_owned())) } else { Ok(found) }
}

/// Connects to one address. `server` is what an error calls it.
pub(super) async fn connect(info: &Conninfo, address: &Address, server: &str) -> Result<Raw> {
    let failed = |error: std::io::Error| {
        let error = Error::new(Kind::Server, format!("{server}: cannot connect")).transient().caused_by(error);
        error.hint("check that the server runs, and its listen_addresses, port and unix_socket_directories")
    };
    match address {
        Address::Dialer => match &info.dialer {
            Some(dialer) => dialer.dial().await.map(Raw::Dialed).map_err(failed),
            None => Err(Error::new(Kind::Failed, "no dialer")),
        },
        Address::Socket(path) => UnixStream::connect(path).await.map(Raw::Unix).map_err(failed),
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(failed)?;
            tune(info, &stream).map_err(failed)?;
            Ok(Raw::Tcp(stream, *address))
        }
    }
}

/// As `fe-connect.c:setKeepalivesIdle` and its neighbours: what is not given stays the system's.
fn tune(info: &Conninfo, stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if let Some(keepalives) = info.keepalives {
        let seconds = |n: u32| std::time::Duration::from_secs(n.into());
        let mut settings = TcpKeepalive::new();
        if keepalives.idle > 0 {
            settings = settings.with_time(seconds(keepalives.idle));
        }
        if keepalives.interval > 0 {
            settings = settings.with_interval(seconds(keepalives.interval));
        }
        if keepalives.count > 0 {
            settings = settings.with_retries(keepalives.count);
        }
        socket.set_keepalive(true)?;
        socket.set_tcp_keepalive(&settings)?;
    }
    if info.tcp_user_timeout.is_some() {
        socket.set_tcp_user_timeout(info.tcp_user_timeout)?;
    }
    Ok(())
}
