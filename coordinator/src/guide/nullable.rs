//! OpenAPI's `nullable`, which is no word of JSON Schema, and by which the model is told that null may stand there.

use serde_json::{Map, Value, json};

use super::walk::each_schema;

/// Says the same in JSON Schema's own words.
pub fn admit_null(schema: &mut Value) {
    each_schema(schema, &mut |schema| {
        let Some(words) = schema.as_object_mut() else { return };
        if words.get("nullable").is_some_and(Value::is_boolean)
            && words.shift_remove("nullable") == Some(Value::Bool(true))
        {
            *schema = or_null(std::mem::take(words));
        }
    });
}

/// What others refer to, or is of all the schema, stays where it is.
fn or_null(words: Map<String, Value>) -> Value {
    let stays = |word: &str| word == "definitions" || word.starts_with('$') && word != "$ref";
    let (mut outside, inside): (Map<_, _>, Map<_, _>) = words.into_iter().partition(|(word, _)| stays(word));
    outside.insert("anyOf".to_owned(), json!([inside, {"type": "null"}]));
    Value::Object(outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_may_stand_where_a_schema_says_so() {
        let or_null = |schema: Value| json!({"anyOf": [schema, {"type": "null"}]});
        for (schema, expected) in [
            (
                json!({"type": "string", "enum": ["a"], "nullable": true}),
                or_null(json!({"type": "string", "enum": ["a"]})),
            ),
            (json!({"type": "string", "nullable": false}), json!({"type": "string"})),
            (
                json!({"properties": {"nullable": {"$ref": "#/$defs/x", "nullable": true}}, "default": {"nullable": true}}),
                json!({"properties": {"nullable": or_null(json!({"$ref": "#/$defs/x"}))}, "default": {"nullable": true}}),
            ),
            (
                json!({"$defs": {"x": {"nullable": true}}, "type": "object", "nullable": true}),
                json!({"$defs": {"x": or_null(json!({}))}, "anyOf": [{"type": "object"}, {"type": "null"}]}),
            ),
        ] {
            let mut said = schema.clone();
            admit_null(&mut said);
            assert_eq!(said, expected, "{schema}");
        }
    }
}
