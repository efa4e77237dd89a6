//! The hosts of a connection string: `host`, `hostaddr` and `port` are lists, and stand for one another where one of them is empty
//! (`fe-connect.c:pqConnectOptions2`).

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

const DEFAULT_PORT: u16 = 5432;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A directory with a socket in it.
    Socket(PathBuf),
    /// A name to look up, or to verify beside an address.
    Tcp { name: Option<String>, address: Option<IpAddr> },
}

/// One entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub place: Place,
    pub port: u16,
}

impl Host {
    /// The socket file (`UNIXSOCK_PATH`), or name and port: for messages.
    pub(super) fn describe(&self) -> String {
        match &self.place {
            Place::Socket(directory) => socket_file(directory, self.port).display().to_string(),
            Place::Tcp { name: Some(name), .. } if name.contains(':') => format!("[{name}]:{}", self.port),
            Place::Tcp { name: Some(name), .. } => format!("{name}:{}", self.port),
            Place::Tcp { address: Some(address), .. } => SocketAddr::new(*address, self.port).to_string(),
            Place::Tcp { .. } => format!("localhost:{}", self.port),
        }
    }

    /// As [`Host::describe`], with the address where a name was looked up or given another one.
    pub(super) fn describe_at(&self, address: Option<IpAddr>) -> String {
        let known = |address: IpAddr| match &self.place {
            Place::Tcp { name: Some(name), .. } => name.parse() == Ok(address),
            Place::Tcp { name: None, address: given } => *given == Some(address),
            Place::Socket(_) => true,
        };
        match address.filter(|address| !known(*address)) {
            Some(address) => format!("{} ({address})", self.describe()),
            None => self.describe(),
        }
    }

    /// Whether `taken` is this host, perhaps at one of its addresses.
    pub(super) fn leads_to(&self, taken: &Host) -> bool {
        let places = match (&self.place, &taken.place) {
            (Place::Tcp { name, address }, Place::Tcp { name: other, address: at }) => {
                name == other && (address.is_none() || address == at)
            }
            (one, other) => one == other,
        };
        places && self.port == taken.port
    }

    /// The same host at this one address. The name stays: certificates and the password file go by it.
    pub(super) fn at(&self, address: Option<IpAddr>) -> Host {
        let place = match (&self.place, address) {
            (Place::Tcp { name, .. }, Some(address)) => Place::Tcp { name: name.clone(), address: Some(address) },
            (place, _) => place.clone(),
        };
        Host { place, port: self.port }
    }

    /// The host as the password file knows it (`fe-connect.c:passwordFromFile`).
    pub(super) fn for_password_file(&self) -> String {
        match &self.place {
            Place::Socket(directory) if *directory == default_socket_directory(self.port) => "localhost".to_owned(),
            Place::Socket(directory) => directory.display().to_string(),
            Place::Tcp { name: Some(name), .. } => name.clone(),
            Place::Tcp { address: Some(address), .. } => address.to_string(),
            Place::Tcp { .. } => "localhost".to_owned(),
        }
    }
}

pub(super) fn socket_file(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// The list that three options make together; never empty.
pub(super) fn list(host: Option<&str>, address: Option<&str>, port: Option<&str>) -> Result<Vec<Host>> {
    let names: Option<Vec<&str>> = host.map(|text| text.split(',').map(str::trim).collect());
    let addresses: Option<Vec<&str>> = address.map(|text| text.split(',').map(str::trim).collect());
    let count = addresses.as_ref().or(names.as_ref()).map_or(1, Vec::len);
    if let (Some(names), Some(addresses)) = (&names, &addresses)
        && names.len() != addresses.len()
    {
        return Err(uneven("host", names.len(), "hostaddr", addresses.len()));
    }
    let ports: Vec<u16> = port.unwrap_or_default().split(',').map(one_port).collect::<Result<_>>()?;
    if ports.len() != 1 && ports.len() != count {
        return Err(uneven("port", ports.len(), if addresses.is_some() { "hostaddr" } else { "host" }, count));
    }
    let at = |list: &Option<Vec<&str>>, index: usize| {
        list.as_ref().and_then(|list| list.get(index).copied()).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let hosts = (0..count).map(|index| {
        let port = ports.get(index).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
        Ok(Host { place: place(at(&names, index), at(&addresses, index), port)?, port })
    });
    hosts.collect()
}

fn one_port(text: &str) -> Result<u16> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    port.ok_or_else(|| Error::new(Kind::Usage, format!("connection option port: expected 1 to 65535, found {text:?}")))
}

fn uneven(one: &str, ones: usize, other: &str, others: usize) -> Error {
    let text = format!("connection option {one} lists {ones}, but {other} lists {others}");
    Error::new(Kind::Usage, text).hint("give as many of each, separated by commas; a single port stands for all hosts")
}

fn place(name: Option<String>, address: Option<String>, port: u16) -> Result<Place> {
    let address = match address {
        Some(text) => Some(text.parse::<IpAddr>().map_err(|_| {
            Error::new(Kind::Usage, format!("connection option hostaddr: expected an IP address, found {text:?}"))
        })?),
        None => None,
    };
    match name {
        None if address.is_none() => Ok(Place::Socket(default_socket_directory(port))),
        Some(name) if address.is_none() && name.starts_with('@') => {
            Err(Error::new(Kind::Usage, format!("an abstract socket (host={name}) is not supported"))
                .hint("name the directory of the socket file, or a host"))
        }
        Some(name) if address.is_none() && name.starts_with('/') => Ok(Place::Socket(name.into())),
        name => Ok(Place::Tcp { name, address }),
    }
}

/// Where the socket is looked for without `host`: as Debian builds libpq, or as upstream does.
fn default_socket_directory(port: u16) -> PathBuf {
    let candidates = [Path::new("/var/run/postgresql"), Path::new("/tmp")];
    let found = candidates.iter().find(|directory| socket_file(directory, port).exists());
    let found = found.or_else(|| candidates.iter().find(|directory| directory.is_dir()));
    found.map_or_else(|| PathBuf::from("/tmp"), |directory| directory.to_path_buf())
}

/// `items` in an order drawn from `seed` (`load_balance_hosts=random`): Fisher and Yates.
pub(super) fn shuffled<T>(mut items: Vec<T>, seed: u64) -> Vec<T> {
    let mut state = seed;
    for last in (1..items.len()).rev() {
        // SplitMix64: any seed will do, zero included.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^= word >> 31;
        items.swap(last, (word % (last as u64 + 1)) as usize);
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(host: &str, address: &str, port: &str) -> Result<Vec<String>, String> {
        let given = |text| Some(text).filter(|text: &&str| !text.is_empty());
        list(given(host), given(address), given(port))
            .map(|hosts| hosts.iter().map(Host::describe).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn lists_go_together() {
        assert_eq!(described("a,b,c", "", "").unwrap(), ["a:5432", "b:5432", "c:5432"]);
        assert_eq!(described("a,b", "", "6000").unwrap(), ["a:6000", "b:6000"]);
        assert_eq!(described("a,/run/pg,::1", "", "1,2,").unwrap(), ["a:1", "/run/pg/.s.PGSQL.2", "[::1]:5432"]);
        assert_eq!(described("", "10.0.0.1,::1", "1,2").unwrap(), ["10.0.0.1:1", "[::1]:2"]);
        // An empty host beside an address, and an empty address beside a host.
        assert_eq!(described(",b", "10.0.0.1,", "").unwrap(), ["10.0.0.1:5432", "b:5432"]);
        assert!(described("a,", "", "").unwrap()[1].ends_with("/.s.PGSQL.5432"));
        assert!(described("", "", "7").unwrap()[0].ends_with("/.s.PGSQL.7"));
        // With an address a name that looks like a directory is only a name.
        assert_eq!(described("/run/pg", "10.0.0.1", "").unwrap(), ["/run/pg:5432"]);
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        for (host, address, port, words) in [
            ("a,b", "10.0.0.1", "", "host lists 2, but hostaddr lists 1"),
            ("a,b", "", "1,2,3", "port lists 3, but host lists 2"),
            ("", "10.0.0.1,10.0.0.2", "1,2,3", "port lists 3, but hostaddr lists 2"),
            ("", "", "1,2", "port lists 2"),
            ("a,@b", "", "", "abstract"),
            ("a", "b", "", "hostaddr"),
            ("a,b", "", "1,0", "port"),
            ("a,b", "", "1,65536", "port"),
        ] {
            let error = described(host, address, port).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn an_address_is_told_where_the_name_does_not() {
        let at = |host: &str, address: &str| list(Some(host), None, None).unwrap()[0].describe_at(address.parse().ok());
        assert_eq!(at("db1", "10.0.0.7"), "db1:5432 (10.0.0.7)");
        assert_eq!(at("10.0.0.7", "10.0.0.7"), "10.0.0.7:5432");
        assert_eq!(at("::1", "::1"), "[::1]:5432");
        let pinned = list(Some("db1"), None, None).unwrap()[0].at("10.0.0.7".parse().ok());
        assert_eq!(pinned.describe_at("10.0.0.7".parse().ok()), "db1:5432 (10.0.0.7)");
        assert_eq!(pinned.for_password_file(), "db1");
    }

    #[test]
    fn a_shuffle_keeps_all_and_reaches_every_order() {
        let mut orders = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let order = shuffled(vec![1, 2, 3], seed);
            assert_eq!(order.iter().sum::<i32>(), 6);
            orders.insert(order);
        }
        assert_eq!(orders.len(), 6);
    }
}
