//! The flags of TLS between coordinator and workers, both sides', and what they become.

use anyhow::{Result, bail, ensure};
use clap::Args;
use flotilla_trust::{ClientFiles, ClientTls, File, ServerFiles, ServerTls, Versions};
use std::path::PathBuf;

/// Their heading in the help.
const HEADING: &str = "TLS between coordinator and workers";
/// What is spoken inside.
const PROTOCOL: &str = "h2";

/// The coordinator's side: all three, or none. `flotilla certs` makes the files, and so does cert-manager.
#[derive(Clone, Debug, Args)]
pub struct FleetTlsArgs {
    /// Certificate chain that workers are shown, PEM: they dial https, and must show one of theirs. Files are read
    /// again when they change
    #[arg(help_heading = HEADING, long, value_name = "FILE", requires_all = ["worker_tls_key", "worker_tls_ca"])]
    worker_tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(help_heading = HEADING, long, value_name = "FILE", requires_all = ["worker_tls_cert", "worker_tls_ca"])]
    worker_tls_key: Option<PathBuf>,
    /// Authority of the workers' certificates, PEM
    #[arg(help_heading = HEADING, long, value_name = "FILE", requires_all = ["worker_tls_cert", "worker_tls_key"])]
    worker_tls_ca: Option<PathBuf>,
}

impl FleetTlsArgs {
    pub fn open(&self) -> Result<Option<ServerTls>> {
        let (Some(cert), Some(key), Some(ca)) =
            (&self.worker_tls_cert, &self.worker_tls_key, &self.worker_tls_ca)
        else {
            return Ok(None);
        };
        let files = ServerFiles {
            cert: File::new("--worker-tls-cert", cert),
            key: File::new("--worker-tls-key", key),
            client_ca: Some(File::new("--worker-tls-ca", ca)),
            versions: Versions::Tls13,
            protocol: PROTOCOL,
        };
        Ok(Some(ServerTls::open(files)?))
    }
}

/// A worker's side.
#[derive(Clone, Debug, Args)]
pub struct WorkerTlsArgs {
    /// Authority of the coordinator's certificate, PEM; with an https:// coordinator. Files are read again when they
    /// change
    #[arg(help_heading = HEADING, long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Certificate chain of this worker, PEM
    #[arg(help_heading = HEADING, long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM
    #[arg(help_heading = HEADING, long, value_name = "FILE", requires_all = ["tls_cert", "tls_ca"])]
    tls_key: Option<PathBuf>,
    /// Name that the coordinator's certificate must have [default: the host that is dialed]
    #[arg(help_heading = HEADING, long, value_name = "NAME", requires = "tls_ca")]
    tls_name: Option<String>,
}

impl WorkerTlsArgs {
    /// What `coordinator`, a URL, asks for.
    pub fn open(&self, coordinator: &str) -> Result<Option<ClientTls>> {
        let Some(address) = coordinator.strip_prefix("https://") else {
            ensure!(
                self.tls_ca.is_none(),
                "--tls-ca is given, and {coordinator} is not an https address\n\
                 hint: --coordinator begins with https:// where the coordinator has --worker-tls-cert"
            );
            return Ok(None);
        };
        let Some(ca) = &self.tls_ca else {
            bail!(
                "{coordinator} is an https address, and nothing says whose certificate is believed\n\
                 hint: give --tls-ca FILE"
            );
        };
        let name = self.tls_name.as_deref().unwrap_or_else(|| host(address));
        let pair = self.tls_cert.as_ref().zip(self.tls_key.as_ref());
        let files = ClientFiles {
            ca: File::new("--tls-ca", ca),
            identity: pair.map(|(cert, key)| (File::new("--tls-cert", cert), File::new("--tls-key", key))),
            protocol: PROTOCOL,
        };
        Ok(Some(ClientTls::open(files, ClientTls::name(name)?)?))
    }
}

/// Of `HOST:PORT/…`; an IPv6 address stands in brackets.
pub fn host(address: &str) -> &str {
    let authority = address.split('/').next().unwrap_or_default();
    match authority.find(']') {
        Some(end) => &authority[..=end],
        None => authority.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn the_host_of_an_address_is_what_a_certificate_names() {
        assert_eq!(host("coordinator:7070"), "coordinator");
        assert_eq!(host("10.0.0.1:7070/"), "10.0.0.1");
        assert_eq!(host("[fd00::1]:7070"), "[fd00::1]");
        assert_eq!(host("coordinator.flotilla.svc"), "coordinator.flotilla.svc");
    }
}
