//! The way to a server: its address, the certificates that are trusted, and whether a proxy stands between.

use crate::address::{host, is_local};
use anyhow::{Context, bail};
use reqwest::{Certificate, ClientBuilder};
use std::env;
use std::path::Path;
use tokio_rustls::rustls::crypto::ring;

/// Where the paths of the API begin. Most clients are given the place of version 1, so that is understood too.
pub fn parse_url(text: &str) -> Result<String, String> {
    let begins_with =
        |scheme: &str| text.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
    if !begins_with("http://") && !begins_with("https://") {
        return Err("expected http:// or https:// at its beginning, as in http://127.0.0.1:8000".into());
    }
    let url = text.trim_end_matches('/');
    Ok(url.strip_suffix("/v1").unwrap_or(url).trim_end_matches('/').to_owned())
}

pub fn client(url: &str, ca: Option<&Path>) -> anyhow::Result<reqwest::Client> {
    builder(url, ca)?.build().with_context(|| {
        format!(
            "cannot prepare to speak to {url}\nhint: is there a certificate of the system? else --ca FILE"
        )
    })
}

/// Of a client that trusts whom `url` and `--ca` say.
pub fn builder(url: &str, ca: Option<&Path>) -> anyhow::Result<ClientBuilder> {
    // Fails where it is installed already: of one process there may be several servers.
    let _ = ring::default_provider().install_default();
    let builder = reqwest::Client::builder();
    // No proxy knows what this machine means by itself.
    let builder = if is_local(url) { builder.no_proxy() } else { builder };
    Ok(match ca {
        Some(path) => builder.tls_certs_only(certificates(path)?),
        None if is_tls(url) => builder,
        // Without certificates on the machine, http works all the same.
        None => builder.tls_certs_only([]),
    })
}

fn certificates(path: &Path) -> anyhow::Result<Vec<Certificate>> {
    const HINT: &str = "\nhint: --ca is a PEM file with -----BEGIN CERTIFICATE-----";
    let cannot = || format!("cannot read certificates from {}{HINT}", path.display());
    let pem = std::fs::read(path).with_context(cannot)?;
    let certificates = Certificate::from_pem_bundle(&pem).with_context(cannot)?;
    if certificates.is_empty() {
        bail!("{} holds no certificate{HINT}", path.display());
    }
    Ok(certificates)
}

fn is_tls(url: &str) -> bool {
    url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"))
}

/// What is said where no connection came about, with a hint.
pub fn unreachable(url: &str) -> String {
    let proxy =
        proxy_variables(url).into_iter().find(|name| env::var_os(name).is_some_and(|v| !v.is_empty()));
    let spared =
        ["NO_PROXY", "no_proxy"].iter().any(|name| env::var(name).is_ok_and(|list| spares(&list, host(url))));
    format!("cannot reach {url}\nhint: {}", hint(url, proxy.filter(|_| !is_local(url) && !spared)))
}

/// Those that name a proxy for this URL, the first before the others.
fn proxy_variables(url: &str) -> [&'static str; 4] {
    match is_tls(url) {
        true => ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        false => ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
    }
}

/// Whether a list of NO_PROXY names the host, or a domain that it is in.
fn spares(list: &str, host: &str) -> bool {
    let is_in =
        |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let names = list.split(',').map(|name| name.trim().trim_start_matches('.'));
    names.filter(|name| !name.is_empty()).any(|name| name == "*" || is_in(name))
}

fn hint(url: &str, proxy: Option<&str>) -> String {
    match (proxy, is_tls(url)) {
        (Some(variable), _) => {
            let host = host(url);
            format!(
                "the proxy of {variable} is asked, unless NO_PROXY names the host: export NO_PROXY=$NO_PROXY,{host}"
            )
        }
        (None, true) => {
            "the certificate must name the host in the address; a private one is trusted by --ca FILE".into()
        }
        (None, false) => "start a server with `flotilla up`".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::{hint, spares};

    #[test]
    fn a_proxy_between_is_named() {
        let url = "http://gpu-3:8000";
        assert!(hint(url, None).contains("flotilla up"));
        let through = hint(url, Some("http_proxy"));
        assert!(through.contains("proxy of http_proxy") && through.ends_with("NO_PROXY,gpu-3"), "{through}");
    }

    #[test]
    fn whoever_is_named_by_no_proxy_goes_by_none() {
        for list in ["gpu-3.lab", "a, gpu-3.lab", ".lab", "lab", "*"] {
            assert!(spares(list, "gpu-3.lab"), "{list}");
        }
        for list in ["", ",", "gpu-3", "3.lab", "gpu-30.lab"] {
            assert!(!spares(list, "gpu-3.lab"), "{list}");
        }
    }
}
