//! What a server tells of itself at one moment.

use super::metrics::Metrics;
use crate::chat::server::Server;
use anyhow::{Context, Result};
use serde_json::Value;
use std::time::{Duration, Instant};

pub struct Look {
    pub at: Instant,
    /// `/v1/cluster`.
    pub cluster: Value,
    pub metrics: Metrics,
}

impl Look {
    pub async fn take(server: &Server, patience: Duration) -> Result<Look> {
        let look = async {
            let cluster = server.get("/v1/cluster").await?;
            let cluster = cluster.json().await.context("/v1/cluster is not JSON")?;
            let metrics = server.get("/metrics").await?;
            let metrics = Metrics::read(&metrics.text().await.context("/metrics is not text")?);
            Ok(Look { at: Instant::now(), cluster, metrics })
        };
        let look = tokio::time::timeout(patience, look).await;
        look.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {} s", patience.as_secs())))
    }

    pub fn uptime_s(&self) -> f64 {
        self.cluster["uptime_seconds"].as_f64().unwrap_or(0.0)
    }
}
