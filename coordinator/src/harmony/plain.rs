//! A JSON schema in the few words that the format has: what libraries write of nested and of optional fields
//! (`$ref`, `anyOf` with null, `const`) is told by words that say the same. What is in such words already stays
//! as it is.
//!
//! Nothing here binds an answer. What refers to itself, or nests too deep, or would copy too much, ends as a type
//! that cannot be told.

use serde_json::{Map, Value, json};

type Words = Map<String, Value>;

/// Schemas in schemas. JSON itself comes no deeper.
const DEPTH_MAX: usize = 128;
/// Bytes that references may bring into one schema: each may name two others, and so on.
const COPIED_MAX: usize = 256 << 10;

pub fn plain(schema: &Value) -> Value {
    Reader { root: schema, open: Vec::new(), depth: 0, copied_left: COPIED_MAX }.read(schema.clone())
}

struct Reader<'a> {
    root: &'a Value,
    /// The references that it is within.
    open: Vec<String>,
    depth: usize,
    copied_left: usize,
}

impl Reader<'_> {
    fn read(&mut self, schema: Value) -> Value {
        match schema {
            Value::Object(_) if self.depth == DEPTH_MAX => json!({}),
            Value::Object(words) => {
                self.depth += 1;
                let words = self.read_words(words);
                self.depth -= 1;
                Value::Object(words)
            }
            other => other,
        }
    }

    fn read_words(&mut self, mut words: Words) -> Words {
        let referred = self.referred(&mut words);
        if let Some(Value::Object(properties)) = words.get_mut("properties") {
            properties.values_mut().for_each(|property| *property = self.read(property.take()));
        }
        if let Some(items) = words.get_mut("items") {
            *items = self.read(items.take());
        }
        for word in ["oneOf", "anyOf"] {
            if let Some(Value::Array(variants)) = words.get_mut(word) {
                variants.iter_mut().for_each(|variant| *variant = self.read(variant.take()));
            }
        }
        // Words beside a reference go before those that it stands for.
        let mut words = referred.into_iter().chain(words).collect();
        any_of(&mut words);
        nullable(&mut words);
        constant(&mut words);
        unsaid(&mut words);
        words
    }

    /// The words of what this refers to. `allOf` of a single schema is how libraries put words beside a reference.
    fn referred(&mut self, words: &mut Words) -> Words {
        let target = match (words.shift_remove("$ref"), words.get("allOf").and_then(Value::as_array)) {
            (Some(Value::String(reference)), _) => self.target(reference),
            (None, Some(all)) if all.len() == 1 => self.read(all[0].clone()),
            _ => return Words::new(),
        };
        match target {
            Value::Object(words) => words,
            _ => Words::new(),
        }
    }

    fn target(&mut self, reference: String) -> Value {
        let found = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let Some(target) = found.filter(|_| self.copied_left > 0 && !self.open.contains(&reference)) else {
            return json!({});
        };
        self.copied_left = self.copied_left.saturating_sub(bytes(target));
        if self.copied_left == 0 {
            return json!({});
        }
        self.open.push(reference);
        let target = self.read(target.clone());
        self.open.pop();
        target
    }
}

fn bytes(value: &Value) -> usize {
    1 + match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + bytes(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// One type or null, several types, or variants.
fn any_of(words: &mut Words) {
    let said = ["type", "oneOf", "properties"].iter().any(|word| words.contains_key(*word));
    let Some(Value::Array(variants)) = words.get("anyOf").filter(|_| !said).cloned() else { return };
    if let Some(names) = variants.iter().map(bare_type).collect::<Option<Vec<_>>>() {
        words.insert("type".to_owned(), names.into());
        return;
    }
    let is_null = |variant: &Value| variant["type"] == "null";
    let with_null = variants.iter().any(is_null);
    let mut kept: Vec<Value> = variants.into_iter().filter(|variant| !is_null(variant)).collect();
    // Behind the last one stands what holds for none before it.
    if let Some(Value::Object(last)) = kept.last_mut().filter(|_| with_null) {
        last.insert("nullable".to_owned(), Value::Bool(true));
    }
    match <[Value; 1]>::try_from(kept) {
        Ok([Value::Object(one)]) => *words = one.into_iter().chain(std::mem::take(words)).collect(),
        Ok([_]) => {}
        Err(kept) => _ = words.insert("oneOf".to_owned(), kept.into()),
    }
}

/// Of a schema that says nothing else.
fn bare_type(schema: &Value) -> Option<Value> {
    let words = schema.as_object()?;
    let bare = words.keys().all(|word| matches!(word.as_str(), "type" | "title"));
    words.get("type").filter(|name| bare && name.is_string()).cloned()
}

/// A list of a type and null hides what else is said of the type.
fn nullable(words: &mut Words) {
    let Some([first, second]) = words.get("type").and_then(Value::as_array).map(Vec::as_slice) else {
        return;
    };
    let name = if second == "null" { first.clone() } else { second.clone() };
    let more = ["properties", "items", "enum"].iter().any(|word| words.contains_key(*word));
    if more && (first == "null" || second == "null") {
        words.insert("type".to_owned(), name);
        words.insert("nullable".to_owned(), Value::Bool(true));
    }
}

/// One word to choose, or one number of all.
fn constant(words: &mut Words) {
    let Some(constant) = words.get("const").filter(|_| !words.contains_key("enum")).cloned() else { return };
    let name = match &constant {
        Value::String(_) => "string",
        Value::Number(_) => "number",
        Value::Bool(_) => "boolean",
        Value::Null | Value::Array(_) | Value::Object(_) => return,
    };
    words.entry("type").or_insert_with(|| name.into());
    words.insert("enum".to_owned(), json!([constant]));
}

/// What goes without saying in a schema, and not in the format.
fn unsaid(words: &mut Words) {
    if words.contains_key("type") || words.contains_key("oneOf") {
        return;
    }
    let strings =
        |values: &Value| values.as_array().is_some_and(|values| values.iter().all(Value::is_string));
    let name = match () {
        () if words.get("properties").is_some_and(Value::is_object) => "object",
        () if words.get("items").is_some_and(Value::is_object) => "array",
        () if words.get("enum").is_some_and(strings) => "string",
        () => return,
    };
    words.insert("type".to_owned(), name.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(schema: Value, expected: Value) {
        let with_definitions = |schema: Value| {
            let mut schema = schema;
            schema["$defs"] = json!({
                "Mode": {"enum": ["fast", "slow"], "title": "Mode"},
                "Point": {"properties": {"x": {"type": "number"}}, "required": ["x"]},
                "Tree": {"type": "object", "properties": {"kids": {"items": {"$ref": "#/$defs/Tree"}}}},
            });
            schema
        };
        let read = plain(&with_definitions(json!({"type": "object", "properties": {"a": schema}})));
        assert_eq!(read["properties"]["a"], expected);
    }

    #[test]
    fn references_are_followed_and_what_stands_beside_them_goes_before() {
        let mode = json!({"enum": ["fast", "slow"], "title": "How", "default": "fast", "type": "string"});
        check(json!({"$ref": "#/$defs/Mode", "title": "How", "default": "fast"}), mode.clone());
        let all = json!({"allOf": [{"$ref": "#/$defs/Mode"}], "title": "How", "default": "fast"});
        let mut read = mode;
        read["allOf"] = json!([{"$ref": "#/$defs/Mode"}]);
        check(all, read);
        let point = json!({"properties": {"x": {"type": "number"}}, "required": ["x"], "type": "object"});
        check(json!({"items": {"$ref": "#/$defs/Point"}}), json!({"items": point, "type": "array"}));
        check(json!({"$ref": "#/$defs/None", "description": "?"}), json!({"description": "?"}));
        check(json!({"$ref": "http://127.0.0.1/x"}), json!({}));
        let tree = json!({"type": "object", "properties": {"kids": {"items": {}, "type": "array"}}});
        check(json!({"$ref": "#/$defs/Tree"}), tree);
        check(
            json!({"$ref": "#"}),
            json!({"type": "object", "properties": {"a": {}}, "$defs": plain_defs()}),
        );
    }

    fn plain_defs() -> Value {
        json!({
            "Mode": {"enum": ["fast", "slow"], "title": "Mode"},
            "Point": {"properties": {"x": {"type": "number"}}, "required": ["x"]},
            "Tree": {"type": "object", "properties": {"kids": {"items": {"$ref": "#/$defs/Tree"}}}},
        })
    }

    #[track_caller]
    fn says(schema: Value, words: Value) {
        let read = plain(&schema);
        for (word, value) in words.as_object().unwrap() {
            assert_eq!(read.get(word), Some(value), "{word} of {read}");
        }
    }

    #[test]
    fn variants_and_null() {
        let string = json!({"type": "string"});
        let object = json!({"type": "object", "properties": {"x": string}});
        says(json!({"anyOf": [string, {"type": "null"}]}), json!({"type": ["string", "null"]}));
        says(
            json!({"anyOf": [object, {"type": "null"}], "description": "d"}),
            json!({"type": "object", "properties": {"x": string}, "nullable": true, "description": "d"}),
        );
        says(json!({"anyOf": [object, string]}), json!({"oneOf": [object, string]}));
        says(
            json!({"anyOf": [object, string, {"type": "null"}]}),
            json!({"oneOf": [object, {"type": "string", "nullable": true}]}),
        );
        says(
            json!({"type": ["null", "string"], "enum": ["a", null]}),
            json!({"type": "string", "nullable": true}),
        );
        says(json!({"type": ["string", "null"]}), json!({"type": ["string", "null"]}));
        // What is required together with what is no type.
        says(json!({"type": "object", "anyOf": [{"required": ["a"]}]}), json!({"type": "object"}));
    }

    #[test]
    fn what_is_constant_is_one_word() {
        says(json!({"const": "a"}), json!({"type": "string", "enum": ["a"]}));
        says(json!({"const": 3}), json!({"type": "number"}));
        says(json!({"const": true, "type": "boolean"}), json!({"type": "boolean"}));
    }

    /// Each definition names the next one twice.
    #[test]
    fn doubling_ends() {
        let mut definitions = Words::new();
        for n in 0..60 {
            let next = json!({"$ref": format!("#/$defs/d{}", n + 1)});
            definitions.insert(format!("d{n}"), json!({"properties": {"a": next, "b": next}}));
        }
        let schema = json!({"$ref": "#/$defs/d0", "$defs": definitions});
        assert!(bytes(&plain(&schema)) < 4 * COPIED_MAX);
        let huge = json!({"$defs": {"a": {"description": "x".repeat(COPIED_MAX)}}, "$ref": "#/$defs/a"});
        assert_eq!(plain(&huge).get("description"), None);
    }
}
