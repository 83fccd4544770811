//! `ADDRESS:PORT` to listen on, and what is said where that cannot be; and the host of a URL.

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// An address as numbers, or localhost.
pub fn parse(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    let local = port.map(|port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    local.or_else(|| text.parse().ok()).ok_or_else(|| "expected ADDRESS:PORT, such as 127.0.0.1:8000".into())
}

/// Why `address` of the flag `flag` cannot be listened on, with a hint.
pub fn fault(address: SocketAddr, flag: &str, error: Error) -> anyhow::Error {
    let ip = address.ip();
    let words = match error.kind() {
        ErrorKind::AddrNotAvailable => format!(
            "cannot listen on {address}: this host has no address {ip}\n\
             hint: {flag} takes one that this host has, or 0.0.0.0 for all of them"
        ),
        ErrorKind::PermissionDenied => format!(
            "cannot listen on {address}: this user may not\n\
             hint: ports below 1024 are the system's; choose another {flag}"
        ),
        _ => {
            format!("cannot listen on {address}\nhint: another server may be running; choose another {flag}")
        }
    };
    anyhow::Error::new(error).context(words)
}

/// Of `http://HOST:PORT/…`, without the brackets of an IPv6 address.
pub fn host(url: &str) -> &str {
    let host = crate::tls::host(url.split_once("://").map_or(url, |(_, rest)| rest));
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether this URL is of this host for sure.
pub fn is_local(url: &str) -> bool {
    let host = host(url);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_numbers_or_localhost() {
        for (text, address) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("localhost:8000", "127.0.0.1:8000"),
            ("[::1]:8000", "[::1]:8000"),
            ("0.0.0.0:0", "0.0.0.0:0"),
        ] {
            assert_eq!(parse(text).map(|address| address.to_string()), Ok(address.into()), "{text}");
        }
        for text in ["18000", "localhost", "localhost:x", "host:80", "127.0.0.1", ":80", "127.0.0.1:65536"] {
            assert!(parse(text).unwrap_err().contains("such as 127.0.0.1:8000"), "{text}");
        }
    }

    #[test]
    fn what_is_of_this_host_is_known_by_its_address() {
        for url in
            ["http://127.0.0.1:8000", "http://LOCALHOST:1/v1", "https://[::1]:8000", "http://0.0.0.0:8000"]
        {
            assert!(is_local(url), "{url}");
        }
        for url in
            ["http://gpu-3:8000", "http://10.0.0.1", "https://[fd00::1]:8000", "http://localhost.example"]
        {
            assert!(!is_local(url), "{url}");
        }
    }
}
