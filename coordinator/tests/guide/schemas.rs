//! What a grammar's text means: which answers each lets through.

use flotilla_coordinator::guide::Grammar;
use serde_json::{Value, json};

use crate::model::{answer, json, may_say, pattern};

/// Each of `fits` is an answer, none of `fails` is.
#[track_caller]
fn check(grammar: Grammar, fits: &[&str], fails: &[&str]) {
    let pattern = pattern(answer(grammar));
    let said =
        |text: &str| may_say(|| pattern.guide(), &format!("<|channel|>final<|message|>{text}<|return|>"));
    for text in fits {
        assert!(said(text), "{text:?} should fit");
    }
    for text in fails {
        assert!(!said(text), "{text:?} should not fit");
    }
}

#[track_caller]
fn check_json(schema: Value, fits: &[&str], fails: &[&str]) {
    check(json(schema), fits, fails);
}

#[test]
fn objects() {
    check(
        Grammar::json_object(),
        &["{}", "{\"a\": [1, {\"b\": null}], \"c\": \"é\"}"],
        &["[]", "1", "{", "{\"a\"}", "{\"a\": 1}x", "", "{a: 1}"],
    );
    let point = json!({"type": "object", "required": ["x", "y"], "additionalProperties": false,
                       "properties": {"x": {"type": "number"}, "y": {"type": "number"}}});
    check_json(
        point.clone(),
        &["{\"x\": 1, \"y\": -2.5}", "{\n  \"x\": 1,\n  \"y\": 2\n}", "{\"x\":1e3,\"y\":0}"],
        &[
            "{\"x\": 1}",
            "{\"x\": 1, \"y\": \"2\"}",
            "{\"x\": 1, \"y\": 2, \"z\": 3}",
            "{\"x\": 01, \"y\": 2}",
        ],
    );
    check_json(
        json!({"$defs": {"point": point}, "type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 1}),
        &["[{\"x\": 1, \"y\": 2}]", "[{\"x\":1,\"y\":2},{\"x\":3,\"y\":4}]"],
        &["[]", "[{}]", "[{\"x\":1,\"y\":2},]"],
    );
}

#[test]
fn nesting_by_reference() {
    let tree = json!({"$defs": {"node": {"type": "object", "required": ["children"],
                      "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                      "additionalProperties": false}}, "$ref": "#/$defs/node"});
    let deep = (0..60).fold("[]".to_owned(), |inner, _| format!("[{{\"children\": {inner}}}]"));
    check_json(tree, &[&format!("{{\"children\": {deep}}}")], &["{\"children\": [[]]}"]);
}

#[test]
fn enums_and_text() {
    check_json(
        json!({"enum": ["rouge", "é", 3, null, "日本"]}),
        &["\"rouge\"", "\"é\"", "3", "null", "\"日本\""],
        &["\"bleu\"", "rouge", "\"日\"", "4"],
    );
    check_json(
        json!({"type": "string", "minLength": 2, "maxLength": 3}),
        &["\"ab\"", "\"日本語\"", "\"🙂🙂\"", "\"\\n\\\"\""],
        &["\"a\"", "\"abcd\"", "\"🙂\"", "\"a\nb\""],
    );
    check_json(
        json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"}),
        &["\"NO-1\"", "\"FR-75001\""],
        &["\"no-1\"", "\"NO-\"", "\"xNO-1\""],
    );
}

#[test]
fn what_a_lax_schema_cannot_enforce_is_passed_over() {
    let schema = json!({"type": "array", "uniqueItems": true, "items": {"type": "integer"}});
    check(Grammar::Json { schema, strict: false }, &["[1, 1]"], &["[x]"]);
    let ahead = json!({"type": "array", "items": {"type": "string", "pattern": "^(?!x)", "maxLength": 2}});
    check(Grammar::Json { schema: ahead, strict: false }, &["[\"xy\"]"], &["[\"abc\"]", "[1]"]);
}

#[test]
fn regular_expressions() {
    check(Grammar::Regex("[a-c]+/[0-9]".into()), &["abc/1", "a/9"], &["/1", "abc/", "abc/12", "d/1"]);
    check(Grammar::Regex("^(oui|non)$".into()), &["oui", "non"], &["ouinon", "o"]);
    check(Grammar::Regex("é{2}|\\n\\t".into()), &["éé", "\n\t"], &["é", "n"]);
    check(Grammar::Regex("\\d+ \"x\" | y".into()), &["12 \"x\" ", " y"], &["12 x"]);
}

#[test]
fn grammars() {
    let sum = "start: number (\"+\" number)*\nnumber: /[0-9]+/\n%ignore \" \"";
    check(Grammar::Lark(sum.into()), &["1", "1+22", "1 + 2 + 3"], &["+", "1+", "1 2", ""]);
    let balanced = "start: \"(\" start \")\" | \"x\"";
    check(Grammar::Lark(balanced.into()), &["x", "((x))"], &["((x)", "()"]);
}

#[test]
fn choices() {
    let texts = ["a \"b\"", "c\\d", "e\nf", "日本 🙂", "i", "g\u{1}\u{7f}", "<|end|>"].map(str::to_owned);
    let grammar = Grammar::Choice(texts[..6].to_vec());
    check(
        grammar,
        &["a \"b\"", "c\\d", "e\nf", "日本 🙂", "i", "g\u{1}\u{7f}"],
        &["a", "日本", "I", "c\\", "x"],
    );
}
