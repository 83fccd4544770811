//! A model that picks allowed tokens by chance: whatever it writes has the form, and it comes to an end.
//!
//! A failing seed is printed; put it in place of the range to replay it.

use flotilla_coordinator::guide::{Form, Grammar, ToolChoice};
use flotilla_coordinator::harmony::parse::{Reply, Stop};
use serde_json::{Value, json};

use crate::model::{Chance, answer, json, pattern, reply, tool};

const SEEDS: std::ops::Range<u64> = 0..40;

/// Writes a turn for each seed, and hands what came of it to `holds`.
fn for_seeds(form: Form, holds: impl Fn(&Reply) -> bool) {
    let pattern = pattern(form);
    for seed in SEEDS {
        let mut chance = Chance { seed, hurry: 20 + seed as usize * 3 };
        let tokens = chance.write(&mut *pattern.guide());
        let reply = reply(&tokens);
        assert!(holds(&reply), "seed {seed}: {reply:?}");
    }
}

fn parsed(reply: &Reply) -> Value {
    serde_json::from_str(&reply.answer).unwrap_or_else(|error| panic!("{error}: {:?}", reply.answer))
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "mood": {"enum": ["glad", "triste", "静か"]},
            "friends": {"type": "array", "maxItems": 3, "items": {"$ref": "#"}},
            "address": {"anyOf": [{"type": "null"}, {"type": "object", "required": ["zip"],
                "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                "additionalProperties": false}]},
        },
        "required": ["name", "age", "mood", "friends", "address"],
        "additionalProperties": false,
    })
}

/// By hand, so that it shares nothing with what it checks.
fn is_person(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    let zip = |zip: &Value| {
        zip.as_str().is_some_and(|zip| zip.len() == 5 && zip.bytes().all(|b| b.is_ascii_digit()))
    };
    object.len() == 5
        && object["name"].as_str().is_some_and(|name| name.chars().count() <= 12)
        && object["age"].as_u64().is_some_and(|age| age <= 150)
        && ["glad", "triste", "静か"].iter().any(|mood| object["mood"] == *mood)
        && object["friends"]
            .as_array()
            .is_some_and(|friends| friends.len() <= 3 && friends.iter().all(is_person))
        && (object["address"].is_null() || zip(&object["address"]["zip"]))
}

#[test]
fn answers_follow_their_schema() {
    for_seeds(answer(json(person())), |reply| {
        reply.stop == Some(Stop::Return) && reply.calls.is_empty() && is_person(&parsed(reply))
    });
}

#[test]
fn any_object_is_json() {
    for_seeds(answer(Grammar::json_object()), |reply| {
        reply.stop == Some(Stop::Return) && reply.preamble.is_empty() && parsed(reply).is_object()
    });
}

#[test]
fn regular_expressions_and_choices_hold() {
    let form = answer(Grammar::Regex("(é|日|[0-9]){1,5}/".into()));
    for_seeds(form, |reply| {
        let body = reply.answer.strip_suffix('/').unwrap_or_default();
        let fits = |c: char| c == 'é' || c == '日' || c.is_ascii_digit();
        (1..=5).contains(&body.chars().count()) && body.chars().all(fits)
    });
    let texts = ["oui", "non", "peut-être"];
    let form = answer(Grammar::Choice(texts.map(str::to_owned).to_vec()));
    for_seeds(form, |reply| texts.contains(&reply.answer.as_str()));
}

#[test]
fn grammars_hold() {
    let form = answer(Grammar::Lark("start: \"(\" start \")\" | /[a-z]{1,3}/".into()));
    for_seeds(form, |reply| {
        let word = reply.answer.trim_matches(['(', ')']);
        let half = (reply.answer.len() - word.len()) / 2;
        reply.answer == format!("{}{word}{}", "(".repeat(half), ")".repeat(half))
    });
}

#[test]
fn required_calls_are_made_and_their_arguments_follow_the_schema() {
    let count = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
                       "additionalProperties": false});
    let tools = vec![tool("meet", person()), tool("count", count)];
    let form = Form { tools, choice: ToolChoice::Required, ..Form::default() };
    for_seeds(form.clone(), |reply| {
        let [call] = &reply.calls[..] else { return false };
        let arguments: Value = serde_json::from_str(&call.arguments).expect("arguments are JSON");
        let fits = match call.name.as_str() {
            "meet" => is_person(&arguments),
            "count" => arguments["n"].is_i64() || arguments["n"].is_u64() || arguments["n"].is_f64(),
            _ => false,
        };
        reply.stop == Some(Stop::Call) && reply.answer.is_empty() && fits
    });
    let form = Form { choice: ToolChoice::Named("count".into()), ..form };
    for_seeds(form, |reply| reply.calls.len() == 1 && reply.calls[0].name == "count");
}

#[test]
fn turns_that_are_free_to_call_end_with_an_answer_or_a_call_that_fits() {
    let mut strict = tool("meet", person());
    strict.strict = true;
    let form = Form { tools: vec![strict, tool("free", json!({}))], ..Form::default() };
    for_seeds(form, |reply| match &reply.calls[..] {
        [] => reply.stop == Some(Stop::Return),
        [call] if call.name == "meet" => {
            is_person(&serde_json::from_str(&call.arguments).expect("arguments are JSON"))
        }
        [call] => call.name == "free" && reply.stop == Some(Stop::Call),
        _ => false,
    });
}
