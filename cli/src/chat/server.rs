//! The server that `flotilla chat` and `flotilla top` speak to: where it is, and the key that it wants. The way to it is in
//! `route`; what is said to it is the chat's business.

use super::plain::plain;
use super::route;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use reqwest::header::HeaderValue;
use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use std::path::PathBuf;

/// Spares the key the command line, which every process of the machine may read.
pub const KEY_VARIABLE: &str = "FLOTILLA_API_KEY";

#[derive(Clone, Debug, Args)]
pub struct ServerArgs {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8000", value_parser = route::parse_url)]
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
        let http = route::client(&args.url, args.ca.as_deref())?;
        Ok(Server { http, url: args.url.clone(), key: key(args.api_key.as_deref())? })
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
        let response = asked.with_context(|| route::unreachable(&self.url))?;
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
        let response = request.send().await.with_context(|| route::unreachable(&self.url))?;
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

/// As it goes into a header, if there is one: what was read from a file has a newline at its end.
pub fn key(given: Option<&str>) -> Result<Option<String>> {
    let Some(key) = given.map(str::trim).filter(|key| !key.is_empty()) else { return Ok(None) };
    ensure!(
        HeaderValue::from_str(key).is_ok(),
        "the API key has characters that a header cannot carry\nhint: a key is one line, as `flotilla key` shows it"
    );
    Ok(Some(key.to_owned()))
}
