//! `flotilla certs`: a private authority and the certificates of a fleet, in folders as cert-manager mounts them
//! (`ca.crt`, `tls.crt`, `tls.key`), one for each machine. It is not a service: whoever runs it carries the folders to
//! their machines, and runs it again before they expire.

use anyhow::{Context, Result, ensure};
use clap::{ArgGroup, Args};
use flotilla_trust::audit::{self, Act};
use flotilla_trust::{File, check_signed};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use std::fs;
use std::io::Write;
use std::net::Ipv6Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_rustls::rustls::pki_types::ServerName;

/// Make a private authority, and certificates for coordinator and workers. Run again it renews certificates, and adds
/// workers; the authority stays.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("whose").args(["coordinator", "worker"]).required(true).multiple(true))]
pub struct CertsArgs {
    /// Folder for all of it; DIR/ca.key in it signs, and belongs to no machine that serves
    dir: PathBuf,
    /// Names and addresses by which workers dial the coordinator, with commas between
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = host)]
    coordinator: Vec<String>,
    /// A worker's name; may be given several times
    #[arg(long, value_name = "NAME")]
    worker: Vec<String>,
    /// Days that the certificates are valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

const AUTHORITY_DAYS: u32 = 7300;
/// The name of every authority that is made here; certificates name their issuer by it.
const AUTHORITY_NAME: &str = "Flotilla's own authority";
/// Clocks of other machines may be late.
const EARLIER: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

pub fn run(args: &CertsArgs) -> Result<()> {
    for worker in &args.worker {
        ensure!(
            is_name(worker),
            "{worker:?} is no name for a worker\nhint: letters, digits and -_. , 1 to 63 of them"
        );
    }
    fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    let (authority, is_new) = Authority::open(&args.dir)?;
    let remark = if is_new { "made anew" } else { "as it was" };
    println!(
        "the authority {}, {remark}; it signs with {}",
        authority.cert.display(),
        authority.key.display()
    );
    if !args.coordinator.is_empty() {
        let names = args.coordinator.clone();
        let folder = args.dir.join("coordinator");
        authority.issue(&folder, "coordinator", names, ExtendedKeyUsagePurpose::ServerAuth, args.days)?;
        println!("\ncoordinator, as {}: {}", args.coordinator.join(", "), folder.display());
        println!("  flotilla coordinator … {}", flags(&folder, "--worker-tls-"));
    }
    for worker in &args.worker {
        let folder = args.dir.join("workers").join(worker);
        let names = vec![worker.clone()];
        authority.issue(&folder, worker, names, ExtendedKeyUsagePurpose::ClientAuth, args.days)?;
        let host = dialed(&args.coordinator);
        println!("\nworker {worker}: {}", folder.display());
        println!("  flotilla worker --coordinator https://{host}:7070 … {}", flags(&folder, "--tls-"));
    }
    println!("\nvalid for {} days; run this again before, with the same names", args.days);
    Ok(())
}

/// As it stands in a URL: a name that can be dialed, of those that the certificate is for.
fn dialed(names: &[String]) -> String {
    match names.iter().find(|name| !name.starts_with("*.")) {
        None => "COORDINATOR".to_owned(),
        Some(name) if name.parse::<Ipv6Addr>().is_ok() => format!("[{name}]"),
        Some(name) => name.clone(),
    }
}

fn flags(folder: &Path, prefix: &str) -> String {
    let files = [("ca", "ca.crt"), ("cert", "tls.crt"), ("key", "tls.key")];
    files.map(|(flag, file)| format!("{prefix}{flag} {}", folder.join(file).display())).join(" ")
}

/// What a worker can look for in a certificate, or `*.` and a domain; without blanks around it.
fn host(text: &str) -> std::result::Result<String, String> {
    let name = text.trim();
    match ServerName::try_from(name.strip_prefix("*.").unwrap_or(name)) {
        Ok(_) => Ok(name.to_owned()),
        Err(_) => {
            Err("expected a host's name or address, without http:// before it and a port behind it".into())
        }
    }
}

/// It becomes the name of a folder.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=63).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.')
}

struct Authority {
    cert: PathBuf,
    key: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The folder's, and whether it was made just now.
    fn open(dir: &Path) -> Result<(Authority, bool)> {
        let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        let params = authority_params()?;
        let is_new = match (cert.exists(), key.exists()) {
            (true, true) => false,
            (false, false) => true,
            (has_cert, _) => {
                let (there, lacks) = if has_cert { (&cert, &key) } else { (&key, &cert) };
                anyhow::bail!(
                    "{} is there, and {} is not\nhint: bring it back, or choose another folder",
                    there.display(),
                    lacks.display()
                );
            }
        };
        let pair = if is_new {
            let pair = KeyPair::generate()?;
            write(&key, &pair.serialize_pem(), 0o600)?;
            write(&cert, &params.self_signed(&pair)?.pem(), 0o644)?;
            pair
        } else {
            let text = fs::read_to_string(&key).with_context(|| format!("cannot read {}", key.display()))?;
            KeyPair::from_pem(&text).with_context(|| format!("{} is no private key in PEM", key.display()))?
        };
        if is_new {
            audit::done(
                Act::MakeCertificate,
                cert.display(),
                format!("an authority for {AUTHORITY_DAYS} days"),
            );
        }
        Ok((Authority { cert, key, issuer: Issuer::new(params, pair) }, is_new))
    }

    /// Writes `ca.crt`, `tls.crt` and `tls.key` into `folder`, over those of before.
    fn issue(
        &self,
        folder: &Path,
        name: &str,
        names: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
        days: u32,
    ) -> Result<()> {
        let listed = names.join(", ");
        let mut params = CertificateParams::new(names)
            .with_context(|| format!("{listed} cannot stand in a certificate"))?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        date(&mut params, days);
        let key = KeyPair::generate()?;
        let signed = params.signed_by(&key, &self.issuer)?;
        check_signed(&File::new("DIR", &self.cert), signed.der())
            .context("the authority's certificate and key are not ones of flotilla certs")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let authority = fs::read_to_string(&self.cert)?;
        write(&folder.join("ca.crt"), &authority, 0o644)?;
        write(&folder.join("tls.key"), &key.serialize_pem(), 0o600)?;
        write(&folder.join("tls.crt"), &signed.pem(), 0o644)?;
        audit::done(Act::MakeCertificate, name, format!("for {listed}, {days} days"));
        Ok(())
    }
}

/// Always the same, so that an authority that was made before can sign without being taken apart.
fn authority_params() -> Result<CertificateParams> {
    let mut params = CertificateParams::new([])?;
    params.distinguished_name.push(DnType::CommonName, AUTHORITY_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    date(&mut params, AUTHORITY_DAYS);
    Ok(params)
}

fn date(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(EARLIER);
    params.not_after = epoch + now + DAY * days;
}

/// In one piece: whoever reads the file meanwhile sees the one of before.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let new = path.with_added_extension("new");
    let written = || {
        let _ = fs::remove_file(&new);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}
