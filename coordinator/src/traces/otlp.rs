//! Spans in the words of OTLP over HTTP, as JSON: protobuf's JSON form of `ExportTraceServiceRequest`, in which ids are
//! hexadecimal and 64-bit numbers are text.

use serde_json::{Value as Json, json};

use super::span::{Span, Value};

/// The sampled flag of W3C.
const SAMPLED: u32 = 1;
const STATUS_ERROR: u32 = 2;
/// Of a collector's words.
const REASON_CHARS_MAX: usize = 300;

/// One request of `spans` of the service of this name.
pub fn body(service: &str, spans: &[Span]) -> Json {
    let version = env!("CARGO_PKG_VERSION");
    let resource = [("service.name", service.into()), ("service.version", version.into())];
    json!({"resourceSpans": [{
        "resource": {"attributes": attributes(&resource)},
        "scopeSpans": [{
            "scope": {"name": "flotilla", "version": version},
            "spans": spans.iter().map(span).collect::<Vec<_>>(),
        }],
    }]})
}

/// How many spans a collector says in its answer that it has rejected, and why; none if it says nothing of the kind.
pub fn rejected(answer: &[u8]) -> Option<(u64, String)> {
    let answer: Json = serde_json::from_slice(answer).ok()?;
    let partial = &answer["partialSuccess"];
    let count = &partial["rejectedSpans"];
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok()).filter(|count| *count > 0)?;
    let why = partial["errorMessage"].as_str().filter(|why| !why.is_empty()).unwrap_or("without a word why");
    Some((count, format!("it rejects spans: {}", why.chars().take(REASON_CHARS_MAX).collect::<String>())))
}

fn span(span: &Span) -> Json {
    let mut json = json!({
        "traceId": span.context.trace.to_string(),
        "spanId": span.context.span.to_string(),
        "flags": SAMPLED,
        "name": span.name,
        "kind": span.kind as u32,
        "startTimeUnixNano": span.start_unix_ns.to_string(),
        "endTimeUnixNano": span.end_unix_ns.to_string(),
        "attributes": attributes(&span.attributes),
        "events": span.events.iter().map(event).collect::<Vec<_>>(),
        "links": span.links.iter().map(|link| json!({
            "traceId": link.trace.to_string(), "spanId": link.span.to_string(),
        })).collect::<Vec<_>>(),
    });
    if let Some(parent) = span.parent {
        json["parentSpanId"] = parent.to_string().into();
    }
    if !span.state.is_empty() {
        json["traceState"] = span.state.clone().into();
    }
    if let Some(error) = span.error {
        json["status"] = json!({"code": STATUS_ERROR, "message": error});
    }
    json
}

fn event((at, name): &(u64, &str)) -> Json {
    json!({"timeUnixNano": at.to_string(), "name": name})
}

fn attributes(attributes: &[(&str, Value)]) -> Json {
    let one = |(key, value): &(&str, Value)| {
        let value = match value {
            Value::Text(text) => json!({"stringValue": text}),
            Value::Count(count) => json!({"intValue": count.to_string()}),
            Value::Number(number) => json!({"doubleValue": number}),
        };
        json!({"key": key, "value": value})
    };
    attributes.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::context::Context;
    use super::*;

    #[test]
    fn a_span_is_worded_as_collectors_read_it() {
        let outer = Context::new();
        let mut span = Span::within(outer, "decode", (5, u64::MAX)).with("rows", 3usize).with("part", 0.5);
        span.links.push(outer);
        span.events.push((7, "first token"));
        span.error = Some("deadline");
        let body = body("here", &[span.clone()]);
        let told = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(told["parentSpanId"], outer.span.to_string());
        assert_eq!(told["traceId"], outer.trace.to_string());
        assert_eq!(told["endTimeUnixNano"], "18446744073709551615");
        assert_eq!(told["attributes"][0], json!({"key": "rows", "value": {"intValue": "3"}}));
        assert_eq!(told["attributes"][1], json!({"key": "part", "value": {"doubleValue": 0.5}}));
        assert_eq!(told["events"][0], json!({"timeUnixNano": "7", "name": "first token"}));
        assert_eq!(told["links"][0]["spanId"], outer.span.to_string());
        assert_eq!(told["status"], json!({"code": 2, "message": "deadline"}));
        let service = &body["resourceSpans"][0]["resource"]["attributes"][0]["value"];
        assert_eq!(service, &json!({"stringValue": "here"}));
    }
}
