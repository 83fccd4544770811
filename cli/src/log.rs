//! Logging: where lines go, which, and in what form. As text for people, or one JSON object a line for machines, in
//! which the fields of a line and those of the spans around it lie side by side.

use crate::output::has_colours;
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::env;
use std::fmt::{self, Debug, Display};
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// What is logged, as tracing-subscriber's `EnvFilter` reads it.
pub const VARIABLE: &str = "FLOTILLA_LOG";
/// In what form, where no flag says so.
pub const FORMAT_VARIABLE: &str = "FLOTILLA_LOG_FORMAT";

/// For [`say`].
static IS_JSON: AtomicBool = AtomicBool::new(false);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl LogFormat {
    pub fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// Lines go to stderr from now on. `default` is what is logged unless [`VARIABLE`] says otherwise; where it says nothing that
/// can be understood, that is the error.
pub fn start(format: LogFormat, default: &str) -> Result<()> {
    let told = env::var_os(VARIABLE).filter(|told| !told.is_empty());
    let told = told.map(|told| filter(&told.to_string_lossy())).transpose();
    let (filter, wrong) = match told {
        Ok(told) => (told.unwrap_or_else(|| EnvFilter::new(default)), Ok(())),
        Err(error) => (EnvFilter::new(default), Err(error)),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => {
            lines.with_ansi(has_colours(&std::io::stderr())).with_target(false).init();
        }
        LogFormat::Json => {
            IS_JSON.store(true, Ordering::Relaxed);
            lines.with_ansi(false).fmt_fields(JsonFields).event_format(JsonLines).init();
        }
    }
    wrong
}

fn filter(text: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(text).with_context(|| {
        format!(
            "{VARIABLE} is {text:?}\nhint: it is a level, or levels by target, as info or warn,flotilla=debug"
        )
    })
}

/// What a server says on stderr in any case, in the form of the log.
pub fn say(words: impl Display) {
    tell(Level::INFO, words);
}

/// The same of what is wrong.
pub fn fail(words: impl Display) {
    match is_json() {
        true => tell(Level::ERROR, words),
        false => eprintln!("error: {words}"),
    }
}

/// In what form the processes that this one starts are to log.
pub fn format() -> LogFormat {
    if is_json() { LogFormat::Json } else { LogFormat::Text }
}

fn is_json() -> bool {
    IS_JSON.load(Ordering::Relaxed)
}

fn tell(level: Level, words: impl Display) {
    match is_json() {
        true => {
            let message = words.to_string();
            let line = json!({"timestamp": now(), "level": level.as_str(), "target": "flotilla", "message": message});
            eprintln!("{line}");
        }
        false => eprintln!("{words}"),
    }
}

fn now() -> String {
    let mut text = String::new();
    // A clock that cannot be written leaves nothing to say.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// One object a line. What a line says itself goes before what the spans around it say, the inner before the outer.
struct JsonLines;

impl<S> FormatEvent<S, JsonFields> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = Fields::default();
        event.record(&mut line);
        let mut line = line.0;
        let spans = context.event_scope().into_iter().flatten();
        for span in spans {
            if let Some(fields) = span.extensions().get::<FormattedFields<JsonFields>>() {
                objects(&fields.fields).flatten().for_each(|(name, value)| {
                    line.entry(name).or_insert(value);
                });
            }
        }
        line.insert("timestamp".into(), now().into());
        line.insert("level".into(), metadata.level().as_str().into());
        line.insert("target".into(), metadata.target().into());
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// A span's fields as an object; what is added later is another, behind it.
struct JsonFields;

impl<'writer> FormatFields<'writer> for JsonFields {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut all = Fields::default();
        fields.record(&mut all);
        write!(writer, "{}", Value::Object(all.0))
    }
}

fn objects(text: &str) -> impl Iterator<Item = Map<String, Value>> {
    serde_json::Deserializer::from_str(text).into_iter().map_while(Result::ok)
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_object_with_its_fields_and_its_spans() {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .fmt_fields(JsonFields)
            .event_format(JsonLines)
            .finish();
        tracing::subscriber::with_default(lines, || {
            let outer =
                tracing::error_span!("outer", request_id = "r\n1", a = 1, late = tracing::field::Empty);
            outer.record("late", 2.5);
            let _outer = outer.enter();
            let _inner = tracing::error_span!("inner", a = 2).entered();
            tracing::warn!(done = true, error = %"no \"room\"", "line\nof two");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let mut line: Value = serde_json::from_str(&text).unwrap();
        let time = line["timestamp"].take();
        assert!(time.as_str().is_some_and(|time| time.ends_with('Z')), "{time}");
        let expected = json!({
            "timestamp": null, "level": "WARN", "target": "flotilla::log::tests", "message": "line\nof two",
            "done": true, "error": "no \"room\"", "request_id": "r\n1", "a": 2, "late": 2.5,
        });
        assert_eq!(line, expected);
    }
}
