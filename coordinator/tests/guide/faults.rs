//! Forms that cannot be kept to: the complaint names the parameter and says what is wrong, and no grammar
//! costs more than its limits.

use std::time::Duration;

use flotilla_coordinator::guide::{Fault, Form, Grammar, Guides, ToolChoice};
use serde_json::{Value, json};

use crate::model::{Chance, GUIDES, HARMONY, answer, json, pattern, refusal, run, say, tokenizer, tool};

#[track_caller]
fn check(grammar: Grammar, expected: &str) {
    faulted(grammar, Fault::Malformed, expected);
}

#[track_caller]
fn faulted(grammar: Grammar, fault: Fault, expected: &str) {
    let error = refusal(answer(grammar));
    assert_eq!((error.path.as_str(), error.fault), ("response_format", fault), "{error}");
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
    let mut unread = tool("f", json!({"type": "object", "properties": {"a": {"type": "str"}}}));
    assert!(run(GUIDES.turn(form(ToolChoice::Required, vec![unread.clone()]))).is_ok(), "lax: any object");
    unread.strict = true;
    assert_eq!(refusal(form(ToolChoice::Required, vec![unread])).fault, Fault::Malformed);
    let many = (0..129).map(|n| tool(&format!("f{n}"), json!({}))).collect();
    assert_eq!(refusal(form(ToolChoice::Required, many)).path, "tools");
}

/// What an attacker would send is refused, or compiled and followed within llguidance's limits.
#[test]
fn what_would_cost_too_much() {
    let much = |grammar, expected| faulted(grammar, Fault::TooComplex, expected);
    much(Grammar::Lark("x".repeat(65 << 10)), "bytes");
    much(Grammar::Regex("(".repeat(4000)), "nests deeper");
    much(Grammar::Lark(format!("start: {}\"x\"{}", "(".repeat(5000), ")".repeat(5000))), "nests deeper");
    much(Grammar::Choice(vec!["a".to_owned(); 1025]), "texts, of at most");
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

/// Each word is a schema's, and together they say nothing.
#[test]
fn what_no_text_is_of_is_told_from_what_is_no_form() {
    let nothing = |schema| faulted(json(schema), Fault::Unsatisfiable, "");
    nothing(json!({"type": "integer", "minimum": 5, "maximum": 4}));
    nothing(json!({"allOf": [{"const": 1}, {"const": 2}]}));
    nothing(json!({"type": "object", "properties": {"a": false}, "required": ["a"]}));
}

/// The form is given up, its thread goes on to its end, and the next form has its time.
#[test]
fn time_to_compile_is_limited() {
    let hasty = Guides::within(HARMONY.clone(), Duration::ZERO);
    let word = |n| format!("a choice of many words, all of them alike but for {n}");
    let slow = Grammar::Choice((0..1000).map(word).collect());
    let error = run(hasty.turn(answer(slow.clone()))).err().expect("no time at all");
    assert_eq!((error.path.as_str(), error.fault), ("response_format", Fault::TooComplex));
    assert_eq!(error.what, "it was not compiled within 0 s");
    assert!(run(GUIDES.turn(answer(slow))).is_ok(), "with time, it is a form as any");
}

/// Each letter may belong together with those before it in ever more ways: with half of it said, llguidance has no room
/// for more. Then there is no mask, and no end that would pass for one.
#[test]
fn a_form_that_becomes_too_much_is_no_end() {
    let ways = (2..8).map(|n| "s ".repeat(n) + "| ").collect::<String>();
    let grammar = Grammar::Lark(format!("start: s\ns: {ways}\"x\""));
    let mut guide = pattern(answer(grammar)).guide();
    say(&mut *guide, "<|channel|>final<|message|>");
    for token in tokenizer().encode_plain(&"x".repeat(1600)) {
        match guide.mask() {
            Ok(mask) => assert!(mask.expect("something is bound").allows(token), "x is always allowed"),
            Err(exhausted) => return assert!(!exhausted.what.is_empty() && !exhausted.what.contains('\n')),
        }
        guide.advance(token);
    }
    panic!("never exhausted");
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
