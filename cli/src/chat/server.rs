//! The server that `flotilla chat` and `flotilla top` speak to: where it is, the key that it wants, and the certificates that
//! are trusted. What is said to it is the chat's business.

use super::plain::plain;
use anyhow::{Context, Result, bail};
use clap::Args;
use reqwest::{Certificate, ClientBuilder, RequestBuilder, Response};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokio_rustls::rustls::crypto::ring;

/// Spares the key the command line, which every process of the machine may read.
const KEY_VARIABLE: &str = "FLOTILLA_API_KEY";

#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8000", value_parser = parse_url)]
    pub url: String,
    /// Key of who asks, where the server wants one
    #[arg(long, value_name = "KEY", env = KEY_VARIABLE, hide_env_values = true)]
    api_key: Option<String>,
    /// Certificates that are trusted instead of the system's, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// A server that can be asked.
pub struct Server {
    http: reqwest::Client,
    url: String,
    key: Option<String>,
}

impl Server {
    pub fn new(args: &ServerArgs) -> Result<Server> {
        let http = client(&args.url, args.ca.as_deref())?;
        let key = args.api_key.clone().filter(|key| !key.is_empty());
        Ok(Server { http, url: args.url.clone(), key })
    }

    /// By a client of HTTP that is there already.
    pub fn with(http: reqwest::Client, url: &str, key: Option<String>) -> Server {
        Server { http, url: url.to_owned(), key }
    }

    /// One that needs neither a key nor trust.
    pub fn plain(url: &str) -> Result<Server> {
        Server::new(&ServerArgs { url: url.to_owned(), api_key: None, ca: None })
    }

    /// The first model that it lists.
    pub async fn model(&self) -> Result<String> {
        let response = self.get("/v1/models").await?;
        let models: Value = response.json().await.context("/v1/models is not JSON")?;
        let name =
            models["data"][0]["id"].as_str().context("the server lists no model\nhint: give --model")?;
        Ok(name.to_owned())
    }

    pub async fn get(&self, path: &str) -> Result<Response> {
        self.send(self.http.get(format!("{}{path}", self.url))).await
    }

    /// Whether the answer is one of success, and its words: of a refusal why, of anything else what there is.
    pub async fn probe(&self, path: &str) -> Result<(bool, String)> {
        let asked = self.http.get(format!("{}{path}", self.url)).send().await;
        let response = asked.with_context(|| unreachable(&self.url))?;
        let (status, text) = (response.status(), response.text().await?);
        let refusal = serde_json::from_str::<Value>(&text).ok();
        let refusal = refusal.and_then(|body| Some(body["error"]["message"].as_str()?.to_owned()));
        let words = refusal.as_deref().unwrap_or_else(|| text.trim_end());
        Ok((status.is_success(), plain(words)))
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Response> {
        self.send(self.http.post(format!("{}{path}", self.url)).json(body)).await
    }

    /// The answer, if it is none of a failure.
    async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.with_context(|| unreachable(&self.url))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body: Value = response.json().await.unwrap_or_default();
        let hint = match (status.as_u16(), &self.key) {
            (401, None) => format!("\nhint: give --api-key, or set {KEY_VARIABLE}"),
            _ => String::new(),
        };
        bail!("{status}: {}{hint}", plain(body["error"]["message"].as_str().unwrap_or("no message")))
    }
}

/// Where the paths of the API begin. Most clients are given the place of version 1, so that is understood too.
fn parse_url(text: &str) -> std::result::Result<String, String> {
    let begins_with =
        |scheme: &str| text.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
    if !begins_with("http://") && !begins_with("https://") {
        return Err("expected http:// or https:// at its beginning, as in http://127.0.0.1:8000".into());
    }
    let url = text.trim_end_matches('/');
    Ok(url.strip_suffix("/v1").unwrap_or(url).trim_end_matches('/').to_owned())
}

fn client(url: &str, ca: Option<&Path>) -> Result<reqwest::Client> {
    builder(url, ca)?.build().with_context(|| {
        format!(
            "cannot prepare to speak to {url}\nhint: is there a certificate of the system? else --ca FILE"
        )
    })
}

/// Of a client that trusts whom `url` and `--ca` say.
pub fn builder(url: &str, ca: Option<&Path>) -> Result<ClientBuilder> {
    // Fails where it is installed already: of one process there may be several servers.
    let _ = ring::default_provider().install_default();
    let builder = reqwest::Client::builder();
    Ok(match ca {
        Some(path) => builder.tls_certs_only(certificates(path)?),
        None if is_tls(url) => builder,
        // Without certificates on the machine, http works all the same.
        None => builder.tls_certs_only([]),
    })
}

fn certificates(path: &Path) -> Result<Vec<Certificate>> {
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

fn unreachable(url: &str) -> String {
    let hint = match is_tls(url) {
        true => "the certificate must name the host in the address; a private one is trusted by --ca FILE",
        false => "start a server with `flotilla up`",
    };
    format!("cannot reach {url}\nhint: {hint}")
}
