//! Whether the restored server could listen where its configuration says: that its port is taken shall not show after hours of copying.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Prepared;
use super::recovery::includes;
use super::settings::value_of;
use crate::archive::Archive;
use crate::error::{Error, Kind, Result};

/// What a server without a line of its own listens on.
const PORT: u16 = 5432;
const ADDRESSES: &str = "localhost";
/// Longest configuration file that is read.
const LONGEST: u64 = 1 << 20;
/// `TCP_LISTEN` (`net/tcp_states.h`).
const LISTENS: &str = "0A";

/// `Kind::Usage` where something on this host listens on the port of the backup's configuration, at one of its addresses. Where the configuration includes other
/// files, or names hosts, nothing is told.
pub async fn demand_free(archive: &Archive, prepared: &Prepared) -> Result<()> {
    // Nobody writes so much, and to look is not worth a failure.
    if prepared.configuration.iter().any(|file| file.size > LONGEST) {
        return Ok(());
    }
    let mut text = String::new();
    // In the order of their names: postgresql.auto.conf comes first and counts last.
    for file in prepared.configuration.iter().rev() {
        text.push_str(&String::from_utf8_lossy(&archive.content_of(file, LONGEST).await?));
        text.push('\n');
    }
    if includes(&text) {
        return Ok(());
    }
    let table = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    let listeners = listeners(&format!("{}{}", table("/proc/net/tcp"), table("/proc/net/tcp6")));
    let port = value_of(&text, "port").map_or(Some(PORT), |port| port.parse().ok());
    let addresses = value_of(&text, "listen_addresses").unwrap_or_else(|| ADDRESSES.to_owned());
    let Some(at) = port.and_then(|port| taken(&addresses, port, &listeners)) else { return Ok(()) };
    Err(Error::new(Kind::Usage, format!("the restored server would listen on port {}, where something listens at {}", at.1, at.0))
        .hint("stop that; or restore with --scratch, or without --start and give the server another port; nothing was changed"))
}

/// Everything that listens, from `/proc/net/tcp` and `/proc/net/tcp6`.
fn listeners(table: &str) -> Vec<(IpAddr, u16)> {
    let listener = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (address, port) = words.next()?.split_once(':')?;
        let listens = words.nth(1)? == LISTENS;
        Some((address_of(address)?, u16::from_str_radix(port, 16).ok()?)).filter(|_| listens)
    };
    table.lines().filter_map(listener).collect()
}

/// Words of four bytes, each as this processor keeps it.
fn address_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let bytes: Vec<u8> = (0..4).filter_map(word).flatten().collect();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical())
        }
        _ => None,
    }
}

/// The listener that one of the addresses meets.
fn taken(addresses: &str, port: u16, listeners: &[(IpAddr, u16)]) -> Option<(IpAddr, u16)> {
    let meets = |wanted: &str, there: &IpAddr| match wanted {
        "*" => true,
        "localhost" => there.is_unspecified() || there.is_loopback(),
        wanted => wanted.parse::<IpAddr>().is_ok_and(|wanted| {
            let all = wanted.is_unspecified() || there.is_unspecified();
            wanted == *there || (all && wanted.is_ipv4() == there.is_ipv4())
        }),
    };
    let wanted = || addresses.split(',').map(str::trim).filter(|wanted| !wanted.is_empty());
    listeners.iter().find(|(there, at)| *at == port && wanted().any(|wanted| meets(wanted, there))).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn what_listens_is_read_from_the_kernel_s_tables() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000   105        0 21370 1 0 100 0 0 10 0
   1: 0100007F:1539 0100007F:C001 01 00000000:00000000 00:00000000 00000000   105        0 21371 1 0 100 0 0 10 0
   0: 00000000000000000000000001000000:1538 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 0 105 0 2 1 0
   1: 0000000000000000FFFF00000100000A:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 0 105 0 2 1 0
";
        let found = listeners(table);
        let expected = [("127.0.0.1", 5432), ("::1", 5432), ("10.0.0.1", 80)];
        assert_eq!(found, expected.map(|(address, port)| (address.parse().unwrap(), port)));
    }

    #[test]
    fn only_what_would_be_in_the_way_counts() {
        let met = |addresses: &str, there: &str| taken(addresses, 5432, &[(there.parse().unwrap(), 5432)]).is_some();
        for (addresses, there) in [
            ("localhost", "127.0.0.1"),
            ("localhost", "::"),
            ("*", "10.0.0.1"),
            ("10.0.0.1", "0.0.0.0"),
            ("a, ::1", "::1"),
        ] {
            assert!(met(addresses, there), "{addresses} {there}");
        }
        for (addresses, there) in
            [("", "0.0.0.0"), ("localhost", "10.0.0.1"), ("10.0.0.2", "10.0.0.1"), ("0.0.0.0", "::1")]
        {
            assert!(!met(addresses, there), "{addresses} {there}");
        }
        assert_eq!(taken("*", 5433, &[("0.0.0.0".parse().unwrap(), 5432)]), None);
    }
}
