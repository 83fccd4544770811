//! Why a handshake came to nothing, in words for whoever must mend it. What one side says of the other's certificate
//! reaches that other side as an alert, so each reason has its words on both.

use std::io;

use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription as Alert, CertificateError as Bad, Error as RustlsError};

use crate::client::ClientFiles;
use crate::file::File;
use crate::server::ServerFiles;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing was said: a probe, or a peer that is gone.
    #[error("it closed the connection")]
    Closed,
    #[error("it does not speak TLS\nhint: {hint}")]
    NotTls { hint: &'static str },
    #[error(
        "it shows no certificate\nhint: give it a certificate and key of an authority in {ca} (--tls-cert, --tls-key)"
    )]
    NoCertificate { ca: String },
    #[error("it wants a certificate of this side, and there is none\nhint: give --tls-cert and --tls-key")]
    WantsCertificate,
    #[error("its certificate {dates}\nhint: renew it, or look at the clocks of both machines")]
    Dates { dates: &'static str },
    #[error("its certificate is not of an authority in {ca}\nhint: {flag} must have who signed it")]
    UnknownAuthority { ca: String, flag: &'static str },
    #[error(
        "its certificate is not for {name:?}, but for {presented}\nhint: dial a name that it has, or give --tls-name"
    )]
    WrongName { name: String, presented: String },
    #[error("its certificate is not made for this\nhint: the extended key usage must have {usage}")]
    WrongPurpose { usage: &'static str },
    /// An alert: what the other side found.
    #[error("it refuses this side's certificate{}: {reason}", in_file(cert))]
    Refused { cert: Option<String>, reason: &'static str },
    #[error("it did not show within {seconds} s what lets it in")]
    Late { seconds: u64 },
    #[error("too many connections wait that have not shown what lets them in, and it had waited longest")]
    Crowded,
    #[error("what it showed does not let it in")]
    TurnedAway,
    #[error("{0}")]
    Other(String),
}

fn in_file(cert: &Option<String>) -> String {
    cert.as_ref().map_or_else(String::new, |cert| format!(" in {cert}"))
}

impl Refusal {
    /// Of a client, by the server's error.
    pub(crate) fn of_client(error: &io::Error, files: &ServerFiles) -> Refusal {
        let ca = || files.client_ca.as_ref().map_or_else(String::new, File::to_string);
        match cause(error) {
            Some(RustlsError::NoCertificatesPresented) => Refusal::NoCertificate { ca: ca() },
            Some(RustlsError::InvalidMessage(_)) => {
                Refusal::NotTls { hint: "it must dial https://, not http://" }
            }
            Some(RustlsError::InvalidCertificate(bad)) => certificate(bad, "clientAuth", || {
                let flag = files.client_ca.as_ref().map_or("", |file| file.flag);
                Refusal::UnknownAuthority { ca: ca(), flag }
            }),
            Some(RustlsError::AlertReceived(alert)) => alerted(*alert, Some(&files.cert)),
            _ => other(error),
        }
    }

    /// Of a server, by the client's error; its certificate must be made for `usage`.
    pub(crate) fn of_server(
        error: &io::Error,
        files: &ClientFiles,
        name: &ServerName<'_>,
        usage: &'static str,
    ) -> Refusal {
        let unknown = || Refusal::UnknownAuthority { ca: files.ca.to_string(), flag: files.ca.flag };
        match cause(error) {
            Some(RustlsError::AlertReceived(Alert::CertificateRequired)) => Refusal::WantsCertificate,
            Some(RustlsError::AlertReceived(alert)) => {
                alerted(*alert, files.identity.as_ref().map(|(cert, _)| cert))
            }
            Some(RustlsError::InvalidMessage(_)) => {
                Refusal::NotTls { hint: "without TLS its address begins with http://" }
            }
            Some(RustlsError::InvalidCertificate(Bad::NotValidForNameContext { presented, .. })) => {
                let names: Vec<&str> = presented.iter().map(|name| plain_name(name)).collect();
                let presented = if names.is_empty() { "no name".into() } else { names.join(", ") };
                Refusal::WrongName { name: name.to_str().into_owned(), presented }
            }
            Some(RustlsError::InvalidCertificate(bad)) => certificate(bad, usage, unknown),
            _ => other(error),
        }
    }
}

/// `localhost` of rustls' `DnsName("localhost")`; `10.0.0.1` of `IpAddress(10.0.0.1)`.
fn plain_name(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

fn certificate(bad: &Bad, usage: &'static str, unknown: impl FnOnce() -> Refusal) -> Refusal {
    match bad {
        Bad::Expired | Bad::ExpiredContext { .. } => Refusal::Dates { dates: "has expired" },
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => Refusal::Dates { dates: "is not valid yet" },
        Bad::UnknownIssuer | Bad::BadSignature => unknown(),
        Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. } => Refusal::WrongPurpose { usage },
        bad => Refusal::Other(format!("its certificate is not accepted: {bad}")),
    }
}

fn alerted(alert: Alert, cert: Option<&File>) -> Refusal {
    let reason = match alert {
        Alert::UnknownCA | Alert::DecryptError => {
            "it is not of an authority that the other side knows\nhint: the other side's authority file must have who signed it"
        }
        Alert::CertificateExpired => {
            "it has expired, or is not valid yet\nhint: renew it, or look at the clocks of both machines"
        }
        Alert::BadCertificate => {
            "it is not for the name that was dialed\nhint: the other side's log says more"
        }
        Alert::UnsupportedCertificate => {
            "it is not made for this\nhint: coordinators need serverAuth as extended key usage, workers clientAuth"
        }
        Alert::CertificateUnknown | Alert::AccessDenied | Alert::CertificateRevoked => {
            "the other side's log says why"
        }
        alert => return Refusal::Other(format!("it broke the handshake off: {alert:?}")),
    };
    Refusal::Refused { cert: cert.map(File::to_string), reason }
}

fn other(error: &io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            Refusal::Closed
        }
        _ => Refusal::Other(error.to_string()),
    }
}

fn cause(error: &io::Error) -> Option<&RustlsError> {
    error.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::plain_name;

    #[test]
    fn names_are_told_as_they_stand_in_the_certificate() {
        for (name, plain) in [
            ("DnsName(\"a.example\")", "a.example"),
            ("IpAddress(10.0.0.1)", "10.0.0.1"),
            ("DirectoryName", "DirectoryName"),
        ] {
            assert_eq!(plain_name(name), plain);
        }
    }
}
