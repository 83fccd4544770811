//! The workers of a `flotilla up` of this machine: who listens at the server's port, and which of its children are workers.
//! Both by /proc, so that the server need not tell its processes to anybody.

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};

/// The process that serves, and starts workers again when they end.
#[derive(Clone, Copy, Debug)]
pub struct Supervisor {
    id: i32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    pub id: i32,
    /// As `--name` says.
    pub name: String,
}

const HINT: &str =
    "hint: --chaos is for a `flotilla up` of this machine and this user, by its address on loopback";

impl Supervisor {
    pub fn at(url: &str) -> Result<Supervisor> {
        let address = local_address(url)?;
        let sockets = listening(address.port());
        let Some(id) = processes().find(|id| descriptors(*id).any(|(_, link)| sockets.contains(&link)))
        else {
            bail!("no process that this user may look at listens on {address}\n{HINT}");
        };
        let supervisor = Supervisor { id };
        if supervisor.workers().is_empty() {
            bail!("process {id}, which listens on {address}, has no workers of Flotilla\n{HINT}");
        }
        Ok(supervisor)
    }

    /// Those that run now, by name.
    pub fn workers(&self) -> Vec<Worker> {
        let children = processes().filter(|id| parent(*id) == Some(self.id));
        let mut workers: Vec<Worker> = children.filter_map(worker).collect();
        workers.sort_by(|one, other| one.name.cmp(&other.name));
        workers
    }
}

fn local_address(url: &str) -> Result<SocketAddr> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split('/').next().unwrap_or_default();
    let with_port = if authority.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok()) {
        authority.to_owned()
    } else {
        format!("{authority}:80")
    };
    let address = with_port.to_socket_addrs().with_context(|| format!("{url} is no address\n{HINT}"))?.next();
    match address {
        Some(address) if address.ip().is_loopback() => Ok(address),
        _ => bail!("{url} is not on loopback\n{HINT}"),
    }
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Numbers of descriptors, and what they point to, where we may look.
pub fn descriptors(id: i32) -> impl Iterator<Item = (i32, String)> {
    let entries = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let link = fs::read_link(entry.path()).ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, link.to_str()?.to_owned()))
    })
}

/// The sockets that listen on a port, as descriptors point to them.
fn listening(port: u16) -> BTreeSet<String> {
    sockets()
        .into_iter()
        .filter(|socket| socket.listens && socket.port == port)
        .map(|socket| socket.link)
        .collect()
}

/// The TCP connections of this machine that stand.
pub fn connections() -> BTreeSet<String> {
    sockets().into_iter().filter(|socket| socket.established).map(|socket| socket.link).collect()
}

struct Socket {
    port: u16,
    listens: bool,
    established: bool,
    link: String,
}

fn sockets() -> Vec<Socket> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(socket).collect()
}

/// `sl local remote state queues timer retransmits uid timeout inode …`
fn socket(line: &str) -> Option<Socket> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (address, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let (_, port) = address.rsplit_once(':')?;
    Some(Socket {
        port: u16::from_str_radix(port, 16).ok()?,
        listens: *state == "0A",
        established: *state == "01",
        link: format!("socket:[{inode}]"),
    })
}

fn parent(id: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // Behind the name in brackets, which may hold anything: the state, then the parent.
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// A process that was started as `flotilla worker … --name NAME …` and has not ended.
fn worker(id: i32) -> Option<Worker> {
    let command = fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?;
    let mut words = command.split('\0');
    words.nth(1).filter(|word| *word == "worker")?;
    let name = words.skip_while(|word| *word != "--name").nth(1)?.to_owned();
    Some(Worker { id, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_found_and_is_not_taken_for_a_server() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let error = Supervisor::at(&url).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())) && error.contains("no workers"),
            "{error}"
        );
        drop(listener);
        assert!(Supervisor::at(&url).unwrap_err().to_string().contains("no process"));
        assert!(Supervisor::at("http://192.0.2.1:80").unwrap_err().to_string().contains("not on loopback"));
    }
}
