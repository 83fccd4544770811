//! The flags of `flotilla bench serve`.

use crate::chat::route::parse_url;
use clap::{Args, ValueEnum};
use flotilla_load::chaos::Schedule;
use flotilla_load::goal::Goal;
use flotilla_load::lengths::Lengths;
use flotilla_load::span;
use std::path::PathBuf;
use std::time::Duration;

const LOAD: &str = "The load";
const PROMPTS: &str = "What is asked";
const OUTCOME: &str = "What is looked for";

/// Load any server that speaks OpenAI's API, time its answers and check them.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8000", value_parser = parse_url)]
    pub url: String,
    /// Model name [default: the first that the server lists]
    #[arg(long)]
    pub model: Option<String>,
    #[arg(long, value_enum, default_value_t = EndpointArg::Chat)]
    pub endpoint: EndpointArg,
    /// Ask for whole answers instead of streams: only the time to the end and tokens a second are known of them
    #[arg(long, conflicts_with = "chaos")]
    pub no_stream: bool,
    /// Key, where the server wants one; where this variable is not set, FLOTILLA_API_KEY is read
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Certificates that are trusted instead of the system's, PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub prompts: PromptArgs,
    #[command(flatten)]
    pub outcome: OutcomeArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EndpointArg {
    Chat,
    Completions,
    Responses,
}

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Clients that each wait for their answer before they ask again [default: 4, if no --rate and no --trace is given]
    #[arg(help_heading = LOAD, long, value_name = "N", conflicts_with_all = ["rate", "trace"], value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: Option<u32>,
    /// Requests a second, sent when they are due whether or not others are answered
    #[arg(help_heading = LOAD, long, value_parser = positive)]
    pub rate: Option<f64>,
    /// How they come
    #[arg(help_heading = LOAD, long, value_enum, default_value_t = ArrivalsArg::Poisson, requires = "rate")]
    pub arrivals: ArrivalsArg,
    /// Requests of one burst
    #[arg(help_heading = LOAD, long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub burst: u32,
    /// Where a ramp ends, in requests a second; it begins at --rate
    #[arg(help_heading = LOAD, long, value_name = "RATE", value_parser = positive, requires = "duration")]
    pub rate_to: Option<f64>,
    /// Recorded times and lengths to replay, as JSON lines or CSV
    #[arg(help_heading = LOAD, long, value_name = "FILE", conflicts_with = "rate")]
    pub trace: Option<PathBuf>,
    /// What one of the trace's timestamps lasts
    #[arg(help_heading = LOAD, long, value_name = "SPAN", value_parser = span::parse, default_value = "1s")]
    pub trace_unit: Duration,
    /// So many times faster than it was recorded
    #[arg(help_heading = LOAD, long, value_name = "TIMES", value_parser = positive, default_value_t = 1.0)]
    pub trace_speed: f64,
    /// Requests to send, or conversations of several turns [default: 100, if no --duration and no --trace is given]
    #[arg(help_heading = LOAD, long, value_name = "N")]
    pub requests: Option<usize>,
    /// How long requests are sent; those under way are awaited
    #[arg(help_heading = LOAD, long, value_name = "SPAN", value_parser = span::parse)]
    pub duration: Option<Duration>,
    /// Requests before those that count
    #[arg(help_heading = LOAD, long, value_name = "N", default_value_t = 0)]
    pub warmup: usize,
    /// Between the turns of a conversation, and between the requests of one client
    #[arg(help_heading = LOAD, long, value_name = "SPAN", value_parser = span::parse, default_value = "0s")]
    pub think: Duration,
    /// Of a whole request
    #[arg(help_heading = LOAD, long, value_name = "SPAN", value_parser = span::parse, default_value = "10m")]
    pub timeout: Duration,
    /// The same seed makes the same prompts at the same times
    #[arg(help_heading = LOAD, long, default_value_t = 1)]
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ArrivalsArg {
    Poisson,
    Constant,
    Burst,
    Ramp,
}

#[derive(Debug, Args)]
pub struct PromptArgs {
    /// Tokens of a prompt with what the server's template adds: 128, 64..256, or lognormal:MEDIAN,SIGMA,MAX
    #[arg(help_heading = PROMPTS, long, value_name = "TOKENS", default_value = "128")]
    pub prompt_tokens: Lengths,
    /// Tokens of an answer at most, in the same forms
    #[arg(help_heading = PROMPTS, long, value_name = "TOKENS", default_value = "64")]
    pub max_tokens: Lengths,
    /// Both lengths about as in ShareGPT's conversations: lognormal:78.4,1.2,2048 and lognormal:205,1,2048
    #[arg(help_heading = PROMPTS, long, conflicts_with_all = ["prompt_tokens", "max_tokens"])]
    pub sharegpt_lengths: bool,
    /// The model's tokenizer.json, for exact lengths; without it the server's count is learned from two requests
    #[arg(help_heading = PROMPTS, long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Prompts instead of made-up ones: JSON lines with "messages" or "prompt", or ShareGPT's array
    #[arg(help_heading = PROMPTS, long, value_name = "FILE", conflicts_with_all = ["prompt_tokens", "tokenizer", "prefix_tokens", "tools"])]
    pub prompts: Option<PathBuf>,
    /// So many of a prompt's tokens are a beginning that others have too
    #[arg(help_heading = PROMPTS, long, value_name = "TOKENS", default_value_t = 0)]
    pub prefix_tokens: usize,
    /// How many different beginnings there are
    #[arg(help_heading = PROMPTS, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub prefixes: u32,
    /// Turns of a conversation: each goes on with what was answered
    #[arg(help_heading = PROMPTS, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub turns: u32,
    /// Offer a function that must be called, and tell its result: two requests a turn
    #[arg(help_heading = PROMPTS, long)]
    pub tools: bool,
    /// Answers go on to their full length, where the server knows ignore_eos
    #[arg(help_heading = PROMPTS, long)]
    pub ignore_eos: bool,
    /// More fields of the body, or others, as a JSON object: '{"temperature": 0}'
    #[arg(help_heading = PROMPTS, long, value_name = "JSON", value_parser = fields)]
    pub extra: Option<Fields>,
}

/// Of a JSON object.
pub type Fields = serde_json::Map<String, serde_json::Value>;

#[derive(Debug, Args)]
pub struct OutcomeArgs {
    /// What a good request keeps: ttft=500ms,itl=50ms,pause=1s,e2e=10s
    #[arg(help_heading = OUTCOME, long)]
    pub goal: Option<Goal>,
    /// Look for the highest rate at which --goal-share of the requests keep the goal, from --rate on
    #[arg(help_heading = OUTCOME, long, requires_all = ["goal", "rate", "duration"])]
    pub sweep: bool,
    /// Share of requests that must keep the goal in a sweep
    #[arg(help_heading = OUTCOME, long, value_name = "SHARE", default_value_t = 0.99, value_parser = share)]
    pub goal_share: f64,
    /// How near the found rate is to one that failed, as a part of it
    #[arg(help_heading = OUTCOME, long, value_name = "PART", default_value_t = 0.1, value_parser = positive)]
    pub sweep_precision: f64,
    /// Runs of a sweep at most
    #[arg(help_heading = OUTCOME, long, value_name = "N", default_value_t = 12)]
    pub sweep_runs: usize,
    /// Faults for the workers of a server of this machine: 10s:kill,20s:stop 3s,30s:cut
    #[arg(help_heading = OUTCOME, long, value_name = "FAULTS", conflicts_with = "sweep")]
    pub chaos: Option<Schedule>,
    /// Write the report as JSON, into FILE or instead of the table
    #[arg(help_heading = OUTCOME, long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
    /// Write a row for each request
    #[arg(help_heading = OUTCOME, long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write a page with plots, which needs no network
    #[arg(help_heading = OUTCOME, long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| format!("{text:?} is no number above 0"))
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| format!("{text:?} is no share, which is above 0 and at most 1"))
}

fn fields(text: &str) -> Result<Fields, String> {
    serde_json::from_str(text).map_err(|error| format!("it is no JSON object: {error}"))
}
