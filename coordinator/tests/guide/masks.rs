//! What may come at each place of a turn, and nothing else.

use flotilla_coordinator::guide::{Form, Grammar, ToolChoice};
use serde_json::json;

use crate::model::{GUIDES, answer, choices, json, may_say, pattern, run, say, source, tool};

const THINKS: &str = "<|channel|>analysis<|message|>Hm, <b>&</b> \"{\".<|end|><|start|>assistant";

fn weather() -> Form {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}},
                            "required": ["city"], "additionalProperties": false});
    let tools = vec![tool("get_weather", parameters), tool("get_time", json!({"type": "object"}))];
    Form { tools, ..Form::default() }
}

#[test]
fn an_answer_is_thought_about_freely_and_then_has_its_form() {
    let pattern = pattern(answer(Grammar::Choice(vec!["yes".into(), "no".into()])));
    let mut guide = pattern.guide();
    assert_eq!(choices(&mut *guide), ["<|channel|>"], "a header comes first");
    say(&mut *guide, "<|channel|>");
    say(&mut *guide, "analysis<|message|>");
    let free = choices(&mut *guide);
    assert!(free.len() > 4000, "all text is free");
    let specials = free.iter().filter(|piece| piece.starts_with("<|") && piece.ends_with("|>"));
    assert_eq!(specials.collect::<Vec<_>>(), ["<|end|>"], "a thought may end, and only so");
    say(&mut *guide, "Let me think. {{ <|end|>");
    assert_eq!(choices(&mut *guide), ["<|start|>"]);
    say(&mut *guide, "<|start|>assistant");
    assert_eq!(choices(&mut *guide), ["<|channel|>"], "no tools: no recipient");
    say(&mut *guide, "<|channel|>final");
    assert_eq!(choices(&mut *guide), ["<|message|>"]);
    say(&mut *guide, "<|message|>");
    for piece in choices(&mut *guide) {
        assert!("yes".starts_with(&piece) || "no".starts_with(&piece), "{piece:?}");
    }
    say(&mut *guide, "yes");
    assert_eq!(choices(&mut *guide), ["<|return|>"], "a whole answer ends the turn");
    say(&mut *guide, "<|return|>");
    assert_eq!(choices(&mut *guide), ["<|return|>"], "nothing is left to say");
}

#[test]
fn a_model_may_say_that_its_answer_is_json() {
    let pattern = pattern(answer(json(json!({"type": "integer"}))));
    let guide = || pattern.guide();
    assert!(may_say(guide, "<|channel|>final <|constrain|>json<|message|>17<|return|>"));
    assert!(may_say(guide, "<|channel|>final<|message|>17<|return|>"));
    assert!(!may_say(guide, "<|channel|>final<|message|>x"));
    assert!(!may_say(guide, "<|channel|>final<|message|><|return|>"), "an empty answer is no integer");
    assert!(!may_say(guide, "<|channel|>commentary"), "clients read preamble and answer as one text");
}

#[test]
fn a_required_call_is_one_of_the_tools_and_follows_its_schema() {
    let pattern = pattern(Form { choice: ToolChoice::Required, ..weather() });
    let guide = || pattern.guide();
    let call = " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>";
    assert!(may_say(guide, &format!("{call}{{\"city\": \"Oslo\"}}<|call|>")));
    assert!(may_say(guide, &format!("{THINKS}{call}{{\"city\":\"\"}}<|call|>")));
    let as_models_write = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>";
    assert!(may_say(guide, &format!("{as_models_write}{{\"city\":\"Oslo\"}}<|call|>")));
    let in_short = "<|channel|>commentary to=functions.get_weather<|constrain|>json<|message|>";
    assert!(may_say(guide, &format!("{in_short}{{\"city\":\"Oslo\"}}<|call|>")));
    let in_shorter = "<|channel|>commentary to=functions.get_weather<|message|>";
    assert!(may_say(guide, &format!("{in_shorter}{{\"city\":\"Oslo\"}}<|call|>")));
    for no in [
        // What would put the call off: a preamble, and a second thought.
        "<|channel|>commentary<|message|>I will look.".to_owned(),
        format!("{THINKS}<|channel|>analysis"),
        "<|channel|>final".to_owned(),
        "<|channel|>commentary <|constrain|>json".to_owned(),
        " to=functions.get_weather<|channel|>commentary<|constrain|>xml".to_owned(),
        " to=functions.get_weather<|channel|>analysis".to_owned(),
        "<|channel|>analysis<|message|>Done.<|return|>".to_owned(),
        " to=functions.get_lost<|channel|>".to_owned(),
        format!("{call}{{}}"),
        format!("{call}{{\"city\": 4}}"),
        format!("{call}{{\"city\": \"Oslo\", \"x\": 1}}"),
        format!("{call}{{\"city\": \"Oslo\"}}<|return|>"),
        format!("{call}{{\"city\": \"Oslo\"<|call|>"),
    ] {
        assert!(!may_say(guide, &no), "{no}");
    }
}

#[test]
fn a_named_call_is_that_one() {
    let pattern = pattern(Form { choice: ToolChoice::Named("get_time".into()), ..weather() });
    let guide = || pattern.guide();
    assert!(may_say(
        guide,
        " to=functions.get_time<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
    ));
    assert!(!may_say(guide, " to=functions.get_weather<|channel|>"));
    assert!(!may_say(guide, "<|channel|>final"));
}

#[test]
fn strict_tools_bind_their_calls_and_leave_the_rest_free() {
    let mut form = weather();
    assert!(run(GUIDES.turn(form.clone())).unwrap().is_none(), "nothing is bound: no guide");
    form.tools[0].strict = true;
    let pattern = pattern(form);
    let guide = || pattern.guide();
    assert!(may_say(guide, "<|channel|>final<|message|>No need to call.<|return|>"));
    assert!(may_say(
        guide,
        "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant to=functions.get_time<|channel|>"
    ));
    let call = |name| format!(" to=functions.{name}<|channel|>commentary <|constrain|>json<|message|>");
    assert!(may_say(guide, &format!("{}{{\"city\":\"Oslo\"}}<|call|>", call("get_weather"))));
    assert!(!may_say(guide, &format!("{}{{\"town\"", call("get_weather"))));
    assert!(may_say(guide, &format!("{}free as a bird<|call|>", call("get_time"))));
}

#[test]
fn an_answer_with_a_form_and_tools_beside_it() {
    let form = Form { response: Some(source(json(json!({"const": 1})))), ..weather() };
    let pattern = pattern(form);
    let guide = || pattern.guide();
    assert!(may_say(guide, "<|channel|>final<|message|>1<|return|>"));
    assert!(!may_say(guide, "<|channel|>final<|message|>2"));
    let call = " to=functions.get_time<|channel|>commentary <|constrain|>json<|message|>";
    assert!(may_say(guide, &format!("{THINKS}{call}anything<|call|>")));
}

#[test]
fn tools_that_are_forbidden_are_not_called() {
    let response = Some(source(json(json!({"type": "boolean"}))));
    let pattern = pattern(Form { response, choice: ToolChoice::None, ..weather() });
    assert!(!may_say(|| pattern.guide(), " to=functions."));
    assert!(may_say(|| pattern.guide(), "<|channel|>final<|message|>true<|return|>"));
}

#[test]
fn a_tool_without_parameters_takes_an_empty_object() {
    let mut form = Form { choice: ToolChoice::Required, ..weather() };
    form.tools[1].parameters = None;
    let pattern = pattern(form);
    let call = " to=functions.get_time<|channel|>commentary <|constrain|>json<|message|>";
    assert!(may_say(|| pattern.guide(), &format!("{call}{{}}<|call|>")));
    assert!(!may_say(|| pattern.guide(), &format!("{call}{{\"")));
}

#[test]
fn raw_text_is_bound_from_its_first_token() {
    let pattern = run(GUIDES.text(source(Grammar::Regex("[0-9]{3}".into())))).unwrap();
    assert!(may_say(|| pattern.guide(), "123<|endoftext|>"));
    assert!(!may_say(|| pattern.guide(), "12<|endoftext|>"));
    assert!(!may_say(|| pattern.guide(), "<|channel|>"));
}

/// Sequences of one request share a pattern and nothing else.
#[test]
fn guides_of_one_pattern_do_not_disturb_each_other() {
    let pattern = pattern(answer(Grammar::Regex("(ab)+".into())));
    let (mut one, mut other) = (pattern.guide(), pattern.guide());
    say(&mut *one, "<|channel|>final<|message|>abab");
    say(&mut *other, "<|channel|>final<|message|>ab");
    drop(one);
    say(&mut *other, "ab<|return|>");
}

/// A driver that let a wrong token through must not hang the turn.
#[test]
fn a_token_that_was_not_allowed_ends_the_turn() {
    let mut guide = pattern(answer(Grammar::Regex("a".into()))).guide();
    guide.advance(crate::model::tokenizer().encode_plain("x")[0]);
    assert_eq!(choices(&mut *guide), ["<|return|>"]);
}
