//! `flotilla top`: the fleet in the terminal, again each second: replicas, workers, queue, cache, rates and where the
//! time of steps goes. It reads `GET /v1/cluster` and `/metrics`, and changes nothing.

mod frame;
mod look;
mod metrics;
mod screen;

use crate::chat::server::{Server, ServerArgs};
use crate::serve::asked_to_stop;
use anyhow::{Result, ensure};
use clap::Args;
use frame::frame;
use look::Look;
use screen::{Screen, columns};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

/// Show replicas, workers, queue, cache and rates of a server, again and again; q leaves.
#[derive(Debug, Args)]
pub struct TopArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Print one frame, of one interval, as plain text, and end
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(long, default_value_t = 1.0, value_parser = parse_interval)]
    interval: f64,
}

/// Latencies are those of so many looks, and what is between the first and the last of them.
const LOOKS_KEPT: usize = 60;
/// A server that does not answer by then is gone, as far as can be seen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(args: TopArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Server::new(&args.server)?;
        match args.once {
            true => once(&server, args.interval()).await,
            false => watch(&server, args.interval()).await,
        }
    })
}

impl TopArgs {
    fn interval(&self) -> Duration {
        Duration::from_secs_f64(self.interval)
    }
}

async fn once(server: &Server, interval: Duration) -> Result<()> {
    let first = Look::take(server, ANSWER_TIMEOUT).await?;
    tokio::time::sleep(interval).await;
    let looks = VecDeque::from([first, Look::take(server, ANSWER_TIMEOUT).await?]);
    let columns = if std::io::stdout().is_terminal() { columns() } else { usize::MAX };
    print!("{}", frame(&looks, columns));
    Ok(())
}

async fn watch(server: &Server, interval: Duration) -> Result<()> {
    ensure!(
        std::io::stdout().is_terminal(),
        "there is no terminal to show the fleet in\nhint: flotilla top --once prints one frame"
    );
    let mut screen = Screen::open();
    let mut looks: VecDeque<Look> = VecDeque::new();
    let stop = asked_to_stop();
    tokio::pin!(stop);
    loop {
        let look = tokio::select! {
            look = Look::take(server, ANSWER_TIMEOUT) => look,
            () = screen.left() => return Ok(()),
            () = &mut stop => return Ok(()),
        };
        match look {
            Ok(look) => {
                // Another server, or the same started again: its counts begin anew.
                if looks.back().is_some_and(|last| last.uptime_s() > look.uptime_s()) {
                    looks.clear();
                }
                looks.push_back(look);
                if looks.len() > LOOKS_KEPT {
                    looks.pop_front();
                }
                screen.show(&frame(&looks, columns()));
            }
            Err(error) => screen.show(&format!("{}\n{}", gone(&error), frame(&looks, columns()))),
        }
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = screen.left() => return Ok(()),
            () = &mut stop => return Ok(()),
        }
    }
}

fn gone(error: &anyhow::Error) -> String {
    format!("NO ANSWER, trying again: {}\n", crate::describe(error))
}

fn parse_interval(text: &str) -> std::result::Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.ok_or_else(|| format!("expected seconds from 0.1 to 3600, found {text:?}"))
}
