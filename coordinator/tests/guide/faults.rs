//! Forms that cannot be kept to: the complaint names the parameter and says what is wrong, and no grammar
//! costs more than its limits.

use flotilla_coordinator::guide::{Form, Grammar, ToolChoice};
use serde_json::{Value, json};

use crate::model::{Chance, GUIDES, answer, json, refusal, run, say, tool};

#[track_caller]
fn check(grammar: Grammar, expected: &str) {
    let error = refusal(answer(grammar));
    assert_eq!(error.path, "response_format");
    assert!(!error.what.is_empty() && error.what.contains(expected), "{expected:?} in {error}");
    assert!(error.what.chars().count() <= 300 && !error.what.contains('\n'), "{error}");
}

#[test]
fn schemas() {
    check(json(json!([])), "a JSON schema is an object");
    check(json(json!({"type": "strin"})), "strin");
    check(json(json!({"type": 7})), "type");
    check(json(json!({"$ref": "#/$defs/none"})), "none");
    check(json(json!({"$ref": "http://127.0.0.1:1/schema.json"})), "127.0.0.1");
    check(json(json!({"type": "array", "uniqueItems": true})), "uniqueItems");
    check(json(json!({"type": "string", "pattern": "(unclosed"})), "unclosed");
    check(json(json!({"type": "object", "properties": 4})), "properties");
    check(json(json!({"type": "integer", "minimum": 5, "maximum": 4})), "");
    check(json(json!({"type": "object", "x-guidance": {"lenient": true}})), "x-guidance");
}

#[test]
fn regular_expressions_and_grammars() {
    check(Grammar::Regex("(a".into()), "unclosed");
    check(Grammar::Regex("a(?=b)".into()), "look");
    check(Grammar::Regex(" ".repeat(3)), "empty");
    check(Grammar::Lark("start: other".into()), "other");
    check(Grammar::Lark("begin: \"x\"".into()), "start");
    check(Grammar::Lark("start: \"x".into()), "");
    check(Grammar::Lark("start: <|end|> \"x\"".into()), "special tokens");
    check(Grammar::Lark("start: <[5-9]>".into()), "special tokens");
    check(Grammar::Lark("start: <[*]>".into()), "special tokens");
    check(Grammar::Lark("start: word\nword[temperature=0.5]: /[a-z]+/".into()), "temperature");
    check(Grammar::Choice(vec![]), "at least one");
    check(Grammar::Choice(vec![String::new()]), "empty");
}

#[test]
fn tools() {
    let form = |choice, tools| Form { choice, tools, ..Form::default() };
    let missing = refusal(form(ToolChoice::Named("g".into()), vec![tool("f", json!({}))]));
    assert_eq!(missing.to_string(), "tool_choice: \"g\" is none of the tools");
    assert_eq!(refusal(form(ToolChoice::Required, vec![])).path, "tool_choice");
    let mut strict = tool("f", json!({"type": "array", "uniqueItems": true}));
    strict.strict = true;
    assert_eq!(refusal(form(ToolChoice::Auto, vec![strict])).path, "tools[0].function.parameters");
    let many = (0..129).map(|n| tool(&format!("f{n}"), json!({}))).collect();
    assert_eq!(refusal(form(ToolChoice::Required, many)).path, "tools");
}

/// What an attacker would send is refused, or compiled and followed within llguidance's limits.
#[test]
fn what_would_cost_too_much() {
    check(Grammar::Lark("x".repeat(65 << 10)), "bytes");
    check(Grammar::Regex("(".repeat(4000)), "nests deeper");
    check(Grammar::Lark(format!("start: {}\"x\"{}", "(".repeat(5000), ")".repeat(5000))), "nests deeper");
    let wide: Vec<Value> = (0..2000).map(|n| json!({"required": [format!("p{n}")]})).collect();
    let all = |n| json!({"properties": {format!("p{n}"): {"pattern": "a.*b.*c"}}});
    let all: Vec<Value> = (0..200).map(all).collect();
    for grammar in [
        Grammar::Regex("((a{1,9999}){1,9999}){1,9999}".into()),
        Grammar::Regex("(x+x+)+y[^z]{9000}".repeat(600)),
        Grammar::Regex("(.*a){1,500}.{500}".into()),
        json(json!({"anyOf": wide})),
        json(json!({"allOf": all})),
    ] {
        survives(grammar);
    }
}

/// Rules that name each other by the thousand, and schemas as deep as JSON goes, are compiled by recursion:
/// none ends the server.
#[test]
fn depth_does_not_end_the_server() {
    let mut rules = String::from("start: r0\n");
    let mut rule = 0;
    while rules.len() < (63 << 10) {
        rules.push_str(&format!("r{rule}: r{}\n", rule + 1));
        rule += 1;
    }
    survives(Grammar::Lark(format!("{rules}r{rule}: \"x\"\n")));
    let mut groups = String::from("start: r0\n");
    let mut rule = 0;
    while groups.len() < (63 << 10) {
        groups.push_str(&format!("r{rule}: \"x\"? (((r{})*)+ | \"y\")\n", rule + 1));
        rule += 1;
    }
    survives(Grammar::Lark(format!("{groups}r{rule}: \"x\"\n")));
    let deep = (0..120).fold(
        json!({"type": "string"}),
        |inner, _| json!({"type": "object", "properties": {"a": inner}, "required": ["a"]}),
    );
    survives(json(deep));
    let all = |inner, _| json!({"allOf": [inner, {"minLength": 1}]});
    survives(json((0..120).fold(json!({"type": "string"}), all)));
    survives(Grammar::Regex(format!("{}a{}", "(".repeat(120), ")*".repeat(120))));
}

/// Refused with a complaint; or compiled, and then a model that writes by chance is led somewhere.
fn survives(grammar: Grammar) {
    match run(GUIDES.turn(answer(grammar))) {
        Ok(pattern) => {
            let mut guide = pattern.expect("something is bound").guide();
            say(&mut *guide, "<|channel|>final<|message|>");
            Chance { seed: 1, hurry: 0 }.some(&mut *guide, 40);
        }
        Err(error) => assert!(!error.what.is_empty(), "a complaint says something"),
    }
}
