//! What is let go of a schema that binds nobody strictly and cannot be followed as it stands.

use serde_json::{Map, Value};

/// Takes out the patterns that cannot be read, wherever a schema may stand; how many there were.
pub fn drop_patterns(schema: &mut Value, reads: &dyn Fn(&str) -> bool) -> usize {
    match schema {
        Value::Object(words) => {
            let below: usize = words.iter_mut().map(|(word, value)| below(word, value, reads)).sum();
            below + drop_own(words, reads)
        }
        Value::Array(schemas) => schemas.iter_mut().map(|schema| drop_patterns(schema, reads)).sum(),
        _ => 0,
    }
}

/// What stands under these words is data, not a schema; or, of properties, the names are.
fn below(word: &str, value: &mut Value, reads: &dyn Fn(&str) -> bool) -> usize {
    match (word, value) {
        ("const" | "enum" | "default" | "examples", _) => 0,
        ("properties" | "$defs" | "definitions" | "patternProperties", Value::Object(schemas)) => {
            schemas.values_mut().map(|schema| drop_patterns(schema, reads)).sum()
        }
        (_, value) => drop_patterns(value, reads),
    }
}

fn drop_own(words: &mut Map<String, Value>, reads: &dyn Fn(&str) -> bool) -> usize {
    let mut dropped = 0;
    let unread = |pattern: &Value| pattern.as_str().is_none_or(|pattern| !reads(pattern));
    if words.get("pattern").is_some_and(unread) {
        words.shift_remove("pattern");
        dropped += 1;
    }
    if let Some(Value::Object(properties)) = words.get_mut("patternProperties") {
        let before = properties.len();
        properties.retain(|pattern, _| reads(pattern));
        dropped += before - properties.len();
    }
    dropped
}
