//! The schemas that stand in a schema.

use serde_json::Value;

/// Hands over every object that may be a schema, the innermost first.
pub fn each_schema(schema: &mut Value, visit: &mut dyn FnMut(&mut Value)) {
    match schema {
        Value::Object(words) => {
            words.iter_mut().for_each(|(word, value)| below(word, value, visit));
            visit(schema);
        }
        Value::Array(schemas) => schemas.iter_mut().for_each(|schema| each_schema(schema, visit)),
        _ => {}
    }
}

/// What stands under these words is data, not a schema; or, of properties, the names are.
fn below(word: &str, value: &mut Value, visit: &mut dyn FnMut(&mut Value)) {
    match (word, value) {
        ("const" | "enum" | "default" | "examples", _) => {}
        ("properties" | "$defs" | "definitions" | "patternProperties", Value::Object(schemas)) => {
            schemas.values_mut().for_each(|schema| each_schema(schema, visit));
        }
        (_, value) => each_schema(value, visit),
    }
}
