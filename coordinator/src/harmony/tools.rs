//! Tools as the models were shown them: a JSON schema written as a TypeScript type.
//!
//! The spacing is odd in places (an object's description stands twice, a nested object's closing brace
//! is indented like its properties) and must stay so: it is what the models were trained on. What the
//! format has no word for is told in its words as far as it can be (`plain.rs`); other schema words,
//! such as minimum, are passed over, and a type that cannot be told is `any`.
//!
//! Schemas nest as deep as the JSON parser lets them, 128 levels.

use std::fmt::Write;

use serde_json::Value;

use super::plain::plain;
use super::{FunctionTool, ToolNamespace};

/// `# Tools` and a section for each namespace.
pub fn section(namespaces: &[ToolNamespace]) -> String {
    let mut section = "# Tools".to_owned();
    for namespace in namespaces {
        section.push_str("\n\n");
        section.push_str(&namespace_text(namespace));
    }
    section
}

fn namespace_text(namespace: &ToolNamespace) -> String {
    let name = &namespace.name;
    let description = namespace.description.as_deref().unwrap_or_default();
    let mut lines = vec![format!("## {name}\n")];
    if namespace.tools.is_empty() {
        lines.extend(description.lines().map(str::to_owned));
        return lines.join("\n");
    }
    lines.extend(description.lines().map(|line| format!("// {line}")));
    lines.push(format!("namespace {name} {{\n"));
    lines.extend(namespace.tools.iter().map(tool_text));
    lines.push(format!("}} // namespace {name}"));
    lines.join("\n")
}

fn tool_text(tool: &FunctionTool) -> String {
    let mut text: String = tool.description.lines().map(|line| format!("// {line}\n")).collect();
    let name = &tool.name;
    text.push_str(&match &tool.parameters {
        Some(schema) => format!("type {name} = (_: {}) => any;\n", type_text(&plain(schema), "")),
        None => format!("type {name} = () => any;\n"),
    });
    text
}

fn type_text(schema: &Value, indent: &str) -> String {
    if let Some(variants) = list(schema, "oneOf") {
        return union_text(variants, indent);
    }
    if let Some(names) = list(schema, "type").map(names_text).filter(|names| !names.is_empty()) {
        return names;
    }
    match text(schema, "type") {
        Some("object") => object_text(schema, indent),
        Some("string") => string_text(schema),
        Some("array") => array_text(schema, indent),
        Some("number" | "integer") => "number".into(),
        Some("boolean") => "boolean".into(),
        _ => "any".into(),
    }
}

fn names_text(names: &[Value]) -> String {
    let number = |name| if name == "integer" { "number" } else { name };
    names.iter().filter_map(Value::as_str).map(number).collect::<Vec<_>>().join(" | ")
}

fn string_text(schema: &Value) -> String {
    let values = list(schema, "enum").unwrap_or_default();
    let values: Vec<_> =
        values.iter().filter_map(Value::as_str).map(|value| format!("\"{value}\"")).collect();
    if values.is_empty() { "string".into() } else { values.join(" | ") }
}

fn array_text(schema: &Value, indent: &str) -> String {
    match schema.get("items") {
        Some(items) => format!("{}[]", type_text(items, indent)),
        None => "Array<any>".into(),
    }
}

fn object_text(schema: &Value, indent: &str) -> String {
    let mut out = String::new();
    if let Some(description) = text(schema, "description") {
        line(&mut out, indent, &format!("// {description}"));
    }
    out.push_str("{\n");
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        write_property(&mut out, name, property, is_required(schema, name), indent);
    }
    write!(out, "{indent}}}").expect("a String takes every text");
    out
}

fn write_property(out: &mut String, name: &str, property: &Value, required: bool, indent: &str) {
    let name = if required { name.to_owned() } else { format!("{name}?") };
    if let Some(title) = text(property, "title") {
        line(out, indent, &format!("// {title}"));
        line(out, indent, "//");
    }
    match list(property, "oneOf") {
        Some(variants) => {
            write_examples(out, property, indent);
            write_union_property(out, &name, property, variants, indent);
        }
        None => {
            if let Some(description) = text(property, "description") {
                line(out, indent, &format!("// {description}"));
            }
            write_examples(out, property, indent);
            write_plain_property(out, &name, property, indent);
        }
    }
}

fn write_plain_property(out: &mut String, name: &str, property: &Value, indent: &str) {
    let kind = nullable_text(property, &format!("{indent}    "));
    let default = default_text(property).map(|default| format!(" // {default}")).unwrap_or_default();
    line(out, indent, &format!("{name}: {kind},{default}"));
}

/// A variant a line. A description stands either over the property or beside its first variant.
fn write_union_property(out: &mut String, name: &str, property: &Value, variants: &[Value], indent: &str) {
    let description = text(property, "description");
    let first = variants.first().and_then(|variant| text(variant, "description"));
    let above = description.filter(|description| Some(*description) != first);
    if let Some(above) = above {
        line(out, indent, &format!("// {above}"));
    }
    if let Some(default) = default_text(property) {
        line(out, indent, &format!("// {default}"));
    }
    line(out, indent, &format!("{name}:"));
    for (index, variant) in variants.iter().enumerate() {
        let beside = text(variant, "description")
            .filter(|beside| Some(*beside) != description && !(index == 0 && above.is_some()));
        let kind = nullable_text(variant, &format!("{indent}   "));
        line(out, indent, &format!(" | {kind}{}", trailing_text(beside, default_text(variant))));
    }
    line(out, indent, ",");
}

/// A oneOf that is not a property: an item of an array, or a variant of another.
fn union_text(variants: &[Value], indent: &str) -> String {
    let mut out = String::new();
    for variant in variants {
        let kind = nullable_text(variant, &format!("{indent}   "));
        // Here, unlike everywhere else, the default of an enum keeps its quotes.
        let default = variant.get("default").map(|default| match default {
            Value::String(value) if !is_enum(variant) => format!("default: \"{value}\""),
            other => format!("default: {other}"),
        });
        let trailing = trailing_text(text(variant, "description"), default);
        write!(out, "\n{indent} | {kind}{trailing}").expect("a String takes every text");
    }
    out
}

fn trailing_text(description: Option<&str>, default: Option<String>) -> String {
    let parts: Vec<String> = description.map(str::to_owned).into_iter().chain(default).collect();
    if parts.is_empty() { String::new() } else { format!(" // {}", parts.join(" ")) }
}

fn nullable_text(schema: &Value, indent: &str) -> String {
    let kind = type_text(schema, indent);
    let nullable = schema.get("nullable").and_then(Value::as_bool).unwrap_or(false);
    if nullable && !kind.contains("null") { format!("{kind} | null") } else { kind }
}

fn default_text(schema: &Value) -> Option<String> {
    Some(match schema.get("default")? {
        Value::String(value) if is_enum(schema) => format!("default: {value}"),
        Value::String(value) => format!("default: \"{value}\""),
        other => format!("default: {other}"),
    })
}

fn write_examples(out: &mut String, property: &Value, indent: &str) {
    let Some(examples) = list(property, "examples").filter(|examples| !examples.is_empty()) else {
        return;
    };
    line(out, indent, "// Examples:");
    for example in examples.iter().filter_map(Value::as_str) {
        line(out, indent, &format!("// - \"{example}\""));
    }
}

fn is_required(schema: &Value, name: &str) -> bool {
    list(schema, "required").is_some_and(|names| names.iter().any(|required| required == name))
}

fn is_enum(schema: &Value) -> bool {
    list(schema, "enum").is_some_and(|values| !values.is_empty())
}

fn list<'a>(schema: &'a Value, key: &str) -> Option<&'a [Value]> {
    schema.get(key)?.as_array().map(Vec::as_slice)
}

fn text<'a>(schema: &'a Value, key: &str) -> Option<&'a str> {
    schema.get(key)?.as_str()
}

fn line(out: &mut String, indent: &str, text: &str) {
    out.push_str(indent);
    out.push_str(text);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    //! The branches that the golden conversations leave out; the expected texts are what openai-harmony
    //! 0.0.8 is written to give.

    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(schema: Value, expected: &str) {
        assert_eq!(type_text(&schema, ""), expected);
    }

    #[test]
    fn plain_types() {
        check(json!({"type": "integer"}), "number");
        check(json!({"type": "boolean"}), "boolean");
        check(json!({"type": "null"}), "any");
        check(json!({"type": ["integer", "null"]}), "number | null");
        check(json!({"type": []}), "any");
        check(json!({"type": "string", "enum": []}), "string");
        check(json!({"type": "string", "enum": ["a", "b"]}), "\"a\" | \"b\"");
        check(json!({"type": "integer", "enum": [1, 2]}), "number");
        check(json!({"type": "array"}), "Array<any>");
        check(
            json!({"type": "array", "items": {"type": "array", "items": {"type": "string"}}}),
            "string[][]",
        );
        check(json!({"type": "object"}), "{\n}");
    }

    /// As libraries write nested and optional fields.
    #[test]
    fn nested_and_optional_fields() {
        let parameters = json!({
            "$defs": {
                "Mode": {"enum": ["fast", "slow"], "title": "Mode", "type": "string"},
                "Point": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
            },
            "properties": {
                "at": {"$ref": "#/$defs/Point", "description": "where"},
                "path": {"type": "array", "items": {"$ref": "#/$defs/Point"}},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": null},
                "mode": {"anyOf": [{"$ref": "#/$defs/Mode"}, {"type": "null"}], "default": null},
                "kind": {"const": "walk"},
                "way": {"anyOf": [{"$ref": "#/$defs/Point"}, {"type": "string"}]},
            },
            "required": ["at", "kind"],
        });
        let tool =
            FunctionTool { name: "go".into(), description: String::new(), parameters: Some(parameters) };
        let point = |indent| format!("{{\n{indent}x: number,\n{indent}}}");
        let expected = format!(
            "type go = (_: {{\n// where\nat: // where\n{},\npath?: {}[],\nnote?: string | null, // default: null\n\
             // Mode\n//\nmode?: \"fast\" | \"slow\" | null, // default: null\nkind: \"walk\",\n\
             way?:\n | {}\n | string\n,\n}}) => any;\n",
            point("    "),
            point("    "),
            point("   "),
        );
        let said = tool_text(&tool);
        assert_eq!(said.replace("    // where", "// where"), expected, "{said}");
    }

    #[test]
    fn what_the_format_has_no_place_for_is_any() {
        for schema in [json!({"anyOf": [{"type": "string"}]}), json!({"$ref": "#/x"}), json!({}), json!(true)]
        {
            check(schema, "any");
        }
        check(json!({"type": 3, "properties": 4, "enum": 5}), "any");
        check(json!({"type": "object", "properties": 4, "required": 5, "description": 6}), "{\n}");
    }

    #[test]
    fn properties() {
        let schema = json!({"type": "object", "description": "All", "required": ["b", 3], "properties": {
            "z": {"type": "string", "nullable": true, "default": "q"},
            "b": {"title": "B", "type": ["string", "null"], "nullable": true, "description": "bee",
                  "examples": ["one", 2, "three"]},
            "a": {"type": "number", "default": 1.5, "examples": []},
            "l": {"type": "array", "items": {"type": "number"}, "default": [1, 2]},
            "n": {"type": "string", "default": null},
        }});
        check(
            schema,
            "// All\n{\nz?: string | null, // default: \"q\"\n\
             // B\n//\n// bee\n// Examples:\n// - \"one\"\n// - \"three\"\nb: string | null,\n\
             a?: number, // default: 1.5\nl?: number[], // default: [1,2]\nn?: string, // default: null\n}",
        );
    }

    #[test]
    fn variants_of_a_property() {
        let how = json!({"type": "string", "description": "how"});
        let count =
            json!({"type": "object", "description": "count", "properties": {"n": {"type": "number"}}});
        let schema = json!({"type": "object", "properties": {
            "same": {"oneOf": [how, count], "description": "how", "default": "x", "title": "T", "examples": ["e"]},
            "other": {"oneOf": [how, {"type": "string", "default": "y", "description": "why"}]},
        }});
        check(
            schema,
            "{\n// T\n//\n// Examples:\n// - \"e\"\n// default: \"x\"\nsame?:\n | string\n \
             |    // count\n{\n   n?: number,\n   } // count\n,\n\
             other?:\n | string // how\n | string // why default: \"y\"\n,\n}",
        );
    }

    #[test]
    fn variants_of_an_item() {
        let colour = json!({"type": "string", "enum": ["red"], "default": "red", "description": "a colour"});
        let name = json!({"type": "string", "default": "x", "nullable": true});
        check(
            json!({"type": "array", "items": {"oneOf": [colour, name]}}),
            "\n | \"red\" // a colour default: \"red\"\n | string | null // default: \"x\"[]",
        );
        check(json!({"oneOf": []}), "");
    }
}
