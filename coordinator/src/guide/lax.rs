//! What is let go of a schema that binds nobody strictly and cannot be followed as it stands.

use serde_json::{Map, Value};

use super::walk::each_schema;

/// Takes out the patterns that cannot be read, wherever a schema may stand; how many there were.
pub fn drop_patterns(schema: &mut Value, reads: &mut dyn FnMut(&str) -> bool) -> usize {
    let mut dropped = 0;
    each_schema(schema, &mut |schema| {
        dropped += schema.as_object_mut().map_or(0, |words| drop_own(words, reads));
    });
    dropped
}

fn drop_own(words: &mut Map<String, Value>, reads: &mut dyn FnMut(&str) -> bool) -> usize {
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
