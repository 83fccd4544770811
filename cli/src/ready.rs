//! `flotilla ready`: asks `/ready`, for scripts, and for container engines whose images have neither a shell nor curl.

use crate::chat::server::{Server, ServerArgs};
use crate::serve::YEAR_S;
use anyhow::{Result, bail};
use clap::Args;
use std::time::{Duration, Instant};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(500);
/// For an answer: who takes longer is not ready.
const PATIENCE: Duration = Duration::from_secs(5);

/// Say whether a server, or a worker with --health-listen, is ready: ends with status 0 if it is, with 1 if not
#[derive(Debug, Args)]
pub struct ReadyArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Seconds to wait until it is
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=YEAR_S))]
    wait: u64,
}

pub fn run(args: &ReadyArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Server::new(&args.server)?;
        let until = Instant::now() + Duration::from_secs(args.wait);
        loop {
            match ask(&server).await {
                Ok(words) => {
                    println!("{words}");
                    return Ok(());
                }
                Err(error) if Instant::now() >= until => return Err(error),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    })
}

/// What it says of itself, if it is ready.
async fn ask(server: &Server) -> Result<String> {
    let Ok(answer) = tokio::time::timeout(PATIENCE, server.probe("/ready")).await else {
        bail!("no answer within {} s", PATIENCE.as_secs())
    };
    let (is_ready, words) = answer?;
    if is_ready { Ok(words) } else { bail!("it is not ready: {words}") }
}
