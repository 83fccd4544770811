//! One frame as text, of what was seen last and what changed since before.

use super::look::Look;
use flotilla_shared::units::Bytes;
use serde_json::Value;
use std::collections::VecDeque;
use std::fmt::Write;

/// Between columns of the workers' table.
const GAP: usize = 2;
/// Columns that are left out where all do not fit: DEVICE and LOADED.
const LEFT_OUT: [usize; 2] = [3, 5];
/// Then it says what is held, and not of how much.
const MEMORY: usize = 4;

const PHASES: [&str; 6] = ["schedule", "send", "wait", "compute", "collective", "sample"];

/// For a terminal of so many columns. Rates are those between the last two looks, latencies of all of them; of one look, what is so far.
pub fn frame(looks: &VecDeque<Look>, columns: usize) -> String {
    let Some(now) = looks.back() else { return String::new() };
    let seen = Seen {
        now,
        columns,
        before: looks.iter().rev().nth(1),
        first: looks.front().filter(|_| looks.len() > 1),
    };
    [seen.head(), seen.requests(), seen.cache(), seen.latencies(), seen.step(), seen.groups(), seen.workers()]
        .concat()
}

struct Seen<'a> {
    now: &'a Look,
    columns: usize,
    before: Option<&'a Look>,
    first: Option<&'a Look>,
}

impl Seen<'_> {
    fn head(&self) -> String {
        let cluster = &self.now.cluster;
        let epoch = cluster["epoch"].as_u64().map_or_else(String::new, |epoch| format!("  epoch {epoch}"));
        let reason =
            cluster["reason"].as_str().map_or_else(String::new, |reason| format!("\n{}", plain(reason)));
        format!(
            "flotilla {}  {}  {}{epoch}  up {}{reason}\n\n",
            word(&cluster["version"]),
            word(&cluster["model"]["id"]),
            word(&cluster["status"]),
            span(self.now.uptime_s())
        )
    }

    fn requests(&self) -> String {
        let load = &self.now.cluster["load"];
        let rate = |name| self.rate(name, &[]).map_or_else(none, |rate| format!("{rate:.1}"));
        format!(
            "requests  running {}  waiting {}  tokens/s {} generated, {} of prompts\n",
            load["running"],
            load["waiting"],
            rate("generation_tokens_total"),
            rate("prompt_tokens_total")
        )
    }

    fn cache(&self) -> String {
        let kv = &self.now.cluster["kv"];
        let pool = |name: &str, blocks: &str| {
            let all = kv[blocks].as_f64().unwrap_or(0.0);
            let free = kv[format!("{blocks}_free")].as_f64().unwrap_or(0.0);
            let cached = kv[format!("{blocks}_cached")].as_u64().unwrap_or(0);
            let held = if all > 0.0 { (all - free) / all * 100.0 } else { 0.0 };
            format!("{name} {held:.0} % of {all} blocks held, {cached} cached")
        };
        format!("kv cache  {}  {}\n", pool("full", "blocks"), pool("window", "window_blocks"))
    }

    fn latencies(&self) -> String {
        let (metrics, first) = (&self.now.metrics, self.first.map(|first| &first.metrics));
        let of = |name: &str| {
            let part = |part| metrics.quantile(name, part, first).map_or_else(none, milliseconds);
            format!("p50 {} p99 {}", part(0.5), part(0.99))
        };
        let seconds = self.first.map(|first| (self.now.at - first.at).as_secs_f64());
        let since = seconds.map_or_else(|| "the start".into(), |seconds| format!("{seconds:.0} s ago"));
        format!(
            "latency   first token {}  between tokens {}  (since {since})\n",
            of("time_to_first_token_seconds"),
            of("inter_token_latency_seconds")
        )
    }

    fn step(&self) -> String {
        let steps = self.grown("replica_steps_total", &[]).filter(|steps| *steps > 0.0);
        if steps.is_none() {
            return "step      none\n".into();
        }
        let split = PHASES.map(|phase| {
            // What is not measured counts no step: it took not no time.
            let counted =
                self.grown("step_phase_seconds_count", &[("phase", phase)]).filter(|count| *count > 0.0);
            let seconds = self.grown("step_phase_seconds_sum", &[("phase", phase)]);
            let mean = seconds.zip(counted).map(|(seconds, counted)| seconds / counted);
            format!("{phase} {}", mean.map_or_else(none, milliseconds))
        });
        let rate = self.rate("replica_steps_total", &[]).map_or_else(none, |rate| format!("{rate:.0}"));
        format!("step      {rate}/s  {}\n", split.join("  "))
    }

    fn groups(&self) -> String {
        let cluster = &self.now.cluster;
        let replicas = cluster["replicas"].as_array().map_or(&[][..], Vec::as_slice);
        let serve = replicas.iter().filter(|replica| replica["status"] == "ready").count();
        let lost = self.now.metrics.sum("group_losses_total", &[]).unwrap_or(0.0);
        let waiting = self.now.metrics.sum("workers", &[("state", "waiting")]).unwrap_or(0.0);
        let last = match cluster["reforms"]["count"].as_u64() {
            None | Some(0) => String::new(),
            Some(_) => {
                format!(", the last in {:.1} s", cluster["reforms"]["last_seconds"].as_f64().unwrap_or(0.0))
            }
        };
        format!(
            "groups    {serve} of {} replicas serve  ended {lost}  formed again {}{last}  workers without a group {waiting}\n",
            replicas.len(),
            cluster["reforms"]["count"]
        )
    }

    fn workers(&self) -> String {
        let workers = self.now.cluster["workers"].as_array().map_or(&[][..], Vec::as_slice);
        if workers.is_empty() {
            return String::new();
        }
        let mut table = vec![
            [
                "RANK", "WORKER", "STATE", "DEVICE", "MEMORY", "LOADED", "LAYERS", "HEADS", "EXPERTS",
                "BUSY", "EXCHANGE",
            ]
            .map(str::to_owned),
        ];
        table.extend(workers.iter().map(|worker| self.worker(worker)));
        let all = widths(&table);
        let is_narrow = all.iter().sum::<usize>() + GAP * (all.len() - 1) > self.columns;
        if is_narrow {
            table
                .iter_mut()
                .for_each(|row| row[MEMORY].truncate(row[MEMORY].find(" of ").unwrap_or(usize::MAX)));
        }
        let widths = widths(&table);
        let mut text = String::from("\n");
        for row in table {
            let mut line = String::new();
            for (at, (cell, width)) in row.iter().zip(widths).enumerate() {
                if !(is_narrow && LEFT_OUT.contains(&at)) {
                    _ = write!(line, "{cell:width$}{:GAP$}", "");
                }
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    fn worker(&self, worker: &Value) -> [String; 11] {
        let (replica, rank) = (worker["replica"].to_string(), worker["rank"].to_string());
        let of_rank = [("replica", replica.as_str()), ("rank", rank.as_str())];
        let bytes = |name: &str| worker[name].as_u64().unwrap_or(0);
        let held = bytes("weights_bytes") + bytes("kv_bytes") + bytes("activation_bytes");
        let loading = |name: &str| worker["loading"][name].as_f64().unwrap_or(0.0);
        let loaded = match loading("bytes_total") {
            0.0 => none(),
            total => format!("{:.0} %", loading("bytes_done") / total * 100.0),
        };
        let engine = self.grown("rank_engine_seconds_total", &of_rank);
        let collective = self.grown("rank_collective_seconds_total", &of_rank);
        let busy = engine.zip(self.seconds()).map(|(engine, seconds)| engine / seconds);
        let exchange = collective.zip(engine.filter(|engine| *engine > 0.0)).map(|(part, all)| part / all);
        [
            format!("{replica}.{rank}"),
            word(&worker["name"]),
            word(&worker["state"]),
            word(&worker["device"]),
            format!("{} of {}", Bytes(held), Bytes(bytes("memory_bytes"))),
            loaded,
            range(&worker["layers"]),
            range(&worker["kv_heads"]),
            range(&worker["experts"]),
            busy.map_or_else(none, percent),
            exchange.map_or_else(none, percent),
        ]
    }

    /// Of a counter, since the look before.
    fn grown(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let now = self.now.metrics.sum(name, labels)?;
        Some(now - self.before?.metrics.sum(name, labels).unwrap_or(0.0))
    }

    fn rate(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        Some(self.grown(name, labels)? / self.seconds()?)
    }

    fn seconds(&self) -> Option<f64> {
        let seconds = (self.now.at - self.before?.at).as_secs_f64();
        (seconds > 0.0).then_some(seconds)
    }
}

/// Of each column, in letters.
fn widths(table: &[[String; 11]]) -> [usize; 11] {
    let of = |at: usize| table.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    std::array::from_fn(of)
}

/// What is not known.
fn none() -> String {
    "-".into()
}

fn percent(part: f64) -> String {
    format!("{:.0} %", part * 100.0)
}

fn milliseconds(seconds: f64) -> String {
    let digits = if seconds < 0.01 { 2 } else { 0 };
    format!("{:.digits$} ms", seconds * 1000.0)
}

/// `1:02:03`.
fn span(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(none, plain)
}

/// Names come from others, and a terminal obeys more than letters.
fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

fn range(ends: &Value) -> String {
    format!("{}..{}", ends[0], ends[1])
}

#[cfg(test)]
mod tests {
    use super::super::metrics::Metrics;
    use super::*;
    use serde_json::json;
    use std::time::{Duration, Instant};

    fn look(at: Instant, steps: u32, collective: &str) -> Look {
        let text = format!(
            "flotilla_replica_steps_total{{replica=\"0\"}} {steps}\n\
             flotilla_step_phase_seconds_sum{{replica=\"0\",phase=\"wait\"}} {}\n\
             flotilla_step_phase_seconds_count{{replica=\"0\",phase=\"wait\"}} {steps}\n\
             flotilla_step_phase_seconds_sum{{replica=\"0\",phase=\"collective\"}} 0.0\n\
             flotilla_step_phase_seconds_count{{replica=\"0\",phase=\"collective\"}} 0\n\
             flotilla_rank_engine_seconds_total{{replica=\"0\",rank=\"1\"}} {}\n{collective}\
             flotilla_generation_tokens_total 7{steps}\n",
            f64::from(steps) * 0.002,
            f64::from(steps) * 0.01,
        );
        let worker = json!({
            "replica": 0, "rank": 1, "name": "gpu\u{1b}[31m", "state": "ready", "device": "cuda:0",
            "memory_bytes": 24_000_000_000u64, "weights_bytes": 1_000_000_000, "kv_bytes": 0, "activation_bytes": 0,
            "loading": {"bytes_done": 5, "bytes_total": 10}, "layers": [0, 24], "kv_heads": [4, 8], "experts": [0, 32],
        });
        let cluster = json!({
            "version": "1", "status": "ready", "uptime_seconds": 3723.5, "epoch": 4, "model": {"id": "m"},
            "load": {"running": 2, "waiting": 1}, "replicas": [{"status": "ready"}, {"status": "lost"}],
            "reforms": {"count": 1, "last_seconds": 0.4}, "workers": [worker],
            "kv": {"blocks": 100, "blocks_free": 75, "blocks_cached": 5},
        });
        Look { at, cluster, metrics: Metrics::read(&text) }
    }

    #[test]
    fn a_frame_tells_rates_of_the_last_interval() {
        let start = Instant::now();
        let looks = [(0, 10), (2, 30)].map(|(at, steps)| look(start + Duration::from_secs(at), steps, ""));
        let looks = VecDeque::from(looks);
        let text = frame(&looks, 120);
        for words in [
            "ready  epoch 4  up 1:02:03",
            "running 2  waiting 1  tokens/s 10.0 generated, - of prompts",
            "full 25 % of 100 blocks held, 5 cached",
            "10/s  schedule -  send -  wait 2.00 ms",
            // A card does not measure it: it took not no time.
            "collective -",
            "1 of 2 replicas serve",
            "formed again 1, the last in 0.4 s",
            "0.1   gpu [31m  ready  cuda:0  1.00 GB of 24.00 GB  50 %    0..24   4..8   0..32    10 %  -",
        ] {
            assert!(text.contains(words), "{words:?} in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
        let narrow = frame(&looks, 80);
        assert!(narrow.contains("  ready  1.00 GB  0..24   4..8   0..32    10 %  -"), "{narrow}");
        assert!(!narrow.contains("DEVICE") && !narrow.contains("LOADED"), "{narrow}");
    }

    #[test]
    fn of_one_look_there_are_no_rates() {
        let text = frame(&VecDeque::from([look(Instant::now(), 10, "")]), 80);
        assert!(text.contains("tokens/s - generated") && text.contains("step      none"), "{text}");
        assert_eq!(frame(&VecDeque::new(), 80), "");
    }
}
