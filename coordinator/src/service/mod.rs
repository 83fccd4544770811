//! The service as one thing: the API over drivers, a listener, a way to stop. Who forms groups and gives
//! them to the driver is not its business.

mod connections;
mod drain;
mod seats;
mod stalls;
mod tls;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flotilla_shared::TokenId;
use tokio::net::TcpListener;

use crate::api::{Api, BodyLimits, Origins, StoreLimits, routers};
use crate::board::Board;
use crate::guide::COMPILE_TIME_MAX;
use crate::harmony::Harmony;
use crate::keys::Keyring;
use crate::router::ReplicaRouter;
use crate::traces::Tracer;
pub use connections::ConnectionLimits;
pub use drain::{Drain, Underway};
pub use tls::{Tls, TlsError};

#[derive(Clone)]
pub struct Settings {
    /// By which clients ask for the model.
    pub model_name: String,
    /// The format, over the checkpoint's tokenizer.
    pub harmony: Harmony,
    /// `eos_token_id` of the checkpoint's `generation_config.json`.
    pub eos_tokens: Vec<TokenId>,
    /// Prompt and answer together.
    pub context_tokens_max: usize,
    /// Which build answers: `system_fingerprint`.
    pub fingerprint: String,
    pub limits: Limits,
    /// Requests that wait at most: the scheduler's limit, for the metrics.
    pub waiting_max: usize,
    /// Who may ask; None: everybody.
    pub keys: Option<Arc<Keyring>>,
    /// Pages of other origins that may ask.
    pub cors: Origins,
    /// None: HTTP in the clear.
    pub tls: Option<Tls>,
    /// What is shown of the cluster.
    pub board: Board,
    /// Whether the server is about to stop.
    pub drain: Drain,
    /// Beginnings of prompts go to the log.
    pub log_prompts: bool,
    /// Who is told of requests.
    pub tracer: Tracer,
    /// `2025-06-28`: what the model is told about today.
    pub current_date: Arc<dyn Fn() -> String + Send + Sync>,
    /// For `created`.
    pub unix_seconds: Arc<dyn Fn() -> u64 + Send + Sync>,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub body: BodyLimits,
    pub connections: ConnectionLimits,
    /// Between two signs of life on a silent stream; proxies cut what is silent for a minute.
    pub keep_alive: Duration,
    /// A request that is not done by then ends. None: it takes the time that it takes.
    pub request_timeout: Option<Duration>,
    /// So long a form of answers may take to be compiled.
    pub compile_time: Duration,
    /// What may be kept for `previous_response_id`.
    pub responses: StoreLimits,
    /// After the order to stop, how long answers under way may take.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            // 128 K tokens of text are half a megabyte; token ids as JSON and tools take more.
            body: BodyLimits { bytes_max: 4 << 20, bytes_all_max: 256 << 20, wait: Duration::from_secs(60) },
            connections: ConnectionLimits::default(),
            keep_alive: Duration::from_secs(15),
            request_timeout: None,
            compile_time: COMPILE_TIME_MAX,
            responses: StoreLimits::default(),
            drain: Duration::from_secs(30),
        }
    }
}

impl Settings {
    /// The rest as most will want it.
    pub fn new(model_name: impl Into<String>, harmony: Harmony, context_tokens_max: usize) -> Settings {
        Settings {
            model_name: model_name.into(),
            harmony,
            eos_tokens: Vec::new(),
            context_tokens_max,
            fingerprint: concat!("flotilla-", env!("CARGO_PKG_VERSION")).to_owned(),
            limits: Limits::default(),
            waiting_max: usize::MAX,
            keys: None,
            cors: Origins::default(),
            tls: None,
            board: Board::default(),
            drain: Drain::default(),
            log_prompts: false,
            tracer: Tracer::default(),
            current_date: Arc::new(|| date_of(unix_seconds())),
            unix_seconds: Arc::new(unix_seconds),
        }
    }
}

/// Serves until `shutdown` is done, and then as long as requests under way take, `limits.drain` at most; whoever asks
/// meanwhile hears that the server stops, and so does whoever has no whole answer by then.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    router: impl Into<ReplicaRouter>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let (limits, tls) = (settings.limits, settings.tls.clone());
    let drain = (settings.drain.clone(), limits.drain);
    let harmony = settings.harmony.clone();
    let router = router.into();
    let (all, reserve) = routers(Api::new(settings, harmony, router.clone()));
    let routers = connections::Routers { all, reserve };
    let watching = tls.clone();
    let stop = || router.stop();
    tokio::select! {
        ended = connections::run(listener, routers, tls, limits.connections, drain, shutdown, stop) => ended.tell(),
        () = async { watching.expect("there is TLS").watch().await }, if watching.is_some() => {}
    }
}

/// The system's clock, for people: dates. Nothing is measured by it.
fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `2025-06-28`, UTC. After Howard Hinnant's `civil_from_days`: years begin in March, so that the leap
/// day is the last of its year, and eras of 400 years are all alike.
fn date_of(unix_seconds: u64) -> String {
    // Days since 0000-03-01.
    let days = unix_seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let day = |days: u64| date_of(days * 86_400 + 86_399);
        assert_eq!(day(0), "1970-01-01");
        assert_eq!(day(11_016), "2000-02-29");
        assert_eq!(day(11_017), "2000-03-01");
        assert_eq!(day(20_267), "2025-06-28");
        assert_eq!(day(47_540), "2100-02-28");
        assert_eq!(day(47_541), "2100-03-01");
    }
}
