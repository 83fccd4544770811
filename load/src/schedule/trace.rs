//! Recorded times and lengths, to be replayed. JSON lines or CSV, with the names of published traces: Mooncake's
//! (`timestamp` in ms, `input_length`, `output_length`), Azure's (`TIMESTAMP` as date and time, `ContextTokens`,
//! `GeneratedTokens`), BurstGPT's (`Timestamp` in s, `Request tokens`, `Response tokens`). Times count from the first.

use super::Due;
use serde_json::Value;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    pub dues: Vec<Due>,
}

#[derive(Debug, thiserror::Error)]
#[error("line {line} of the trace: {reason}\nhint: JSON lines or CSV with a header; {NAMES}")]
pub struct TraceError {
    line: usize,
    reason: String,
}

const NAMES: &str = "timestamp (s; timestamp_ms for ms), input_length, output_length";
const SECONDS: [&str; 4] = ["timestamp", "timestamp_s", "time", "at_s"];
const MILLISECONDS: [&str; 1] = ["timestamp_ms"];
const PROMPTS: [&str; 5] =
    ["input_length", "prompt_tokens", "contexttokens", "request tokens", "input_tokens"];
const ANSWERS: [&str; 6] = [
    "output_length",
    "max_tokens",
    "generatedtokens",
    "response tokens",
    "output_tokens",
    "completion_tokens",
];

/// No model has a longer context; and a longer prompt would be made up before it is refused.
const TOKENS_MAX: f64 = 1e7;

/// Times in seconds, with the lengths.
type Entry = (f64, Option<usize>, Option<usize>);

impl Trace {
    /// `unit_s`: what one of `timestamp` lasts, in seconds. `speed` 2 replays it in half the time.
    pub fn read(text: &str, unit_s: f64, speed: f64) -> Result<Trace, TraceError> {
        // As some programs on Windows begin a file.
        let text = text.trim_start_matches('\u{feff}');
        let is_json = text.trim_start().starts_with('{');
        let mut entries = if is_json { json_lines(text, unit_s)? } else { csv(text, unit_s)? };
        entries.sort_by(|one, other| one.0.total_cmp(&other.0));
        let Some(first) = entries.first().map(|entry| entry.0) else {
            return Err(TraceError { line: 1, reason: "there is no entry".into() });
        };
        let due = |(at, prompt_tokens, max_tokens): Entry| Due {
            at_us: ((at - first) / speed * 1e6).round() as u64,
            prompt_tokens,
            max_tokens,
        };
        Ok(Trace { dues: entries.into_iter().map(due).collect() })
    }
}

fn json_lines(text: &str, unit_s: f64) -> Result<Vec<Entry>, TraceError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let entry = |(index, line): (usize, &str)| {
        let fail = |reason: String| TraceError { line: index + 1, reason };
        let fields: serde_json::Map<String, Value> =
            serde_json::from_str(line).map_err(|error| fail(error.to_string()))?;
        let value = |names: &[&str]| {
            let found = fields.iter().find(|(name, _)| names.contains(&name.to_lowercase().as_str()))?;
            Some(found.1.as_str().map_or_else(|| found.1.to_string(), str::to_owned))
        };
        entry_of(&value, unit_s).map_err(fail)
    };
    lines.map(entry).collect()
}

fn csv(text: &str, unit_s: f64) -> Result<Vec<Entry>, TraceError> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let header = lines.next().map_or("", |(_, line)| line).to_lowercase();
    let header: Vec<&str> = header.split(',').map(str::trim).collect();
    let entry = |(index, line): (usize, &str)| {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let value = |names: &[&str]| {
            let column = header.iter().position(|name| names.contains(name))?;
            cells.get(column).map(|cell| (*cell).to_owned())
        };
        entry_of(&value, unit_s).map_err(|reason| TraceError { line: index + 1, reason })
    };
    lines.map(entry).collect()
}

fn entry_of(value: &dyn Fn(&[&str]) -> Option<String>, unit_s: f64) -> Result<Entry, String> {
    let (text, unit_s) = match (value(&MILLISECONDS), value(&SECONDS)) {
        (Some(text), _) => (text, 1e-3),
        (None, Some(text)) => (text, unit_s),
        (None, None) => return Err("it has no time".into()),
    };
    let plain = text.parse::<f64>().ok().filter(|time| time.is_finite()).map(|time| time * unit_s);
    let time = plain.or_else(|| date_time(&text)).ok_or_else(|| format!("{text:?} is no time"))?;
    let tokens = |names| match value(names) {
        None => Ok(None),
        // Some traces hold 0 for answers that failed; nothing can be asked for that is shorter than a token.
        Some(text) => match text.parse::<f64>() {
            Ok(tokens) if (0.0..=TOKENS_MAX).contains(&tokens) => Ok(Some((tokens as usize).max(1))),
            _ => Err(format!("{text:?} is no length, which is 0 to {TOKENS_MAX} tokens")),
        },
    };
    Ok((time, tokens(&PROMPTS)?, tokens(&ANSWERS)?))
}

/// `2023-11-16 18:15:46.68`, perhaps with `+00:00` behind it, as seconds since some day.
fn date_time(text: &str) -> Option<f64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let date: Vec<i64> = date.split('-').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let (time, offset) = time.split_at(time.find(['+', '-', 'Z']).unwrap_or(time.len()));
    let [year, month, day] = date.as_slice() else { return None };
    if !((0..10_000).contains(year) && (1..=12).contains(month) && (1..=31).contains(day)) {
        return None;
    }
    let ahead = match offset.split_at_checked(1) {
        Some(("+", ahead)) => of_day(ahead)?,
        Some(("-", behind)) => -of_day(behind)?,
        _ => 0.0,
    };
    Some(days(*year, *month, *day) as f64 * 86400.0 + of_day(time)? - ahead)
}

/// `18:15:46.68` or `18:15`, in seconds.
fn of_day(text: &str) -> Option<f64> {
    let parts: Vec<f64> = text.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    match parts.as_slice() {
        [hours, minutes] => Some(hours * 3600.0 + minutes * 60.0),
        [hours, minutes, seconds] => Some(hours * 3600.0 + minutes * 60.0 + seconds),
        _ => None,
    }
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have their leap day last.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_traces_are_read() {
        let mooncake = r#"{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [1]}
            {"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [2]}"#;
        let read = Trace::read(mooncake, 1e-3, 1.0).unwrap();
        let second = Due { at_us: 3_053_000, prompt_tokens: Some(6472), max_tokens: Some(26) };
        assert_eq!((read.dues[0].at_us, read.dues[1]), (0, second));
        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-12-31 23:59:59.50,374,44\n2024-01-01 00:00:01.0,396,109\n";
        let read = Trace::read(azure, 1.0, 2.0).unwrap();
        assert_eq!(read.dues[1], Due { at_us: 750_000, prompt_tokens: Some(396), max_tokens: Some(109) });
        let burst = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,x\n";
        let read = Trace::read(burst, 1.0, 1.0).unwrap();
        assert_eq!(read.dues[1], Due { at_us: 40_000_000, prompt_tokens: Some(1087), max_tokens: Some(1) });
    }

    /// Those of 2024 have an offset, and what was saved on Windows a mark before its first byte.
    #[test]
    fn offsets_and_a_mark_before_the_text_are_read() {
        let azure = "\u{feff}TIMESTAMP,ContextTokens,GeneratedTokens\n\
            2024-05-10 00:00:00.009930+00:00,1,2\n2024-05-10 02:00:01.009930+02:00,3,4\n2024-05-09T22:00:02.00993-02:00,5,6\n\
            2024-05-10T00:00:03.00993Z,7,8\n";
        let read = Trace::read(azure, 1.0, 1.0).unwrap();
        let at: Vec<u64> = read.dues.iter().map(|due| due.at_us).collect();
        assert_eq!(at, [0, 1_000_000, 2_000_000, 3_000_000]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let says = |text: &str| Trace::read(text, 1.0, 1.0).unwrap_err().to_string();
        assert!(
            says("timestamp,input_length\n1,2\nx,3\n").starts_with("line 3 of the trace: \"x\" is no time")
        );
        assert!(says("{\"timestamp\": 1}\n{").starts_with("line 2"));
        assert!(says("a,b\n1,2\n").contains("it has no time"));
        assert!(says("timestamp\n").contains("there is no entry"));
        assert!(says("timestamp,input_length\n1,-4\n").contains("\"-4\" is no length"));
        assert!(
            says("timestamp,input_length\n1,1e18\n").contains("is no length, which is 0 to 10000000 tokens")
        );
        for wrong in [
            "99999999999999999-01-01 00:00:00",
            "2024-13-01 00:00:00",
            "2024-05-10 00",
            "2024-05-10 00:00:00+x",
        ] {
            assert!(says(&format!("timestamp\n{wrong}\n")).contains("is no time"), "{wrong}");
        }
    }
}
