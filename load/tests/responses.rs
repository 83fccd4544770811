//! Streams of the Responses API that are right, and for each kind of violation one that is wrong in just that; and answers that
//! came as one body.

use flotilla_load::stream::{Call, Checked, Checker, Endpoint, Events, Expect, ViolationKind, whole};
use serde_json::{Value, json};

const EXPECT: Expect = Expect { endpoint: Endpoint::Responses, choices: 1, max_tokens: Some(4) };

fn check(stream: &str) -> Checked {
    let (mut events, mut checker) = (Events::default(), Checker::new(EXPECT));
    events.push(stream.as_bytes());
    for event in events.rest() {
        checker.event(&event);
    }
    checker.end(true)
}

fn kinds(stream: &str) -> Vec<ViolationKind> {
    check(stream).violations.iter().map(|violation| violation.kind).collect()
}

fn event(number: u64, name: &str, mut fields: Value) -> String {
    fields["type"] = json!(name);
    fields["sequence_number"] = json!(number);
    format!("event: {name}\ndata: {fields}\n\n")
}

fn delta(number: u64, of: &str, text: &str) -> String {
    event(number, &format!("response.{of}.delta"), json!({ "item_id": "i", "delta": text }))
}

/// A response that has thought, said `text`, and called.
fn response(text: &str, output_tokens: u64) -> Value {
    json!({
        "id": "r", "model": "m", "status": "completed", "error": null, "incomplete_details": null,
        "output": [
            { "type": "reasoning", "content": [{ "type": "reasoning_text", "text": "hm" }] },
            { "type": "message", "content": [{ "type": "output_text", "text": text }] },
            { "type": "function_call", "call_id": "c", "name": "look", "arguments": "{}" },
        ],
        "usage": {
            "input_tokens": 5, "output_tokens": output_tokens, "total_tokens": 5 + output_tokens,
            "input_tokens_details": { "cached_tokens": 2 },
        },
    })
}

fn created() -> String {
    event(0, "response.created", json!({ "response": { "id": "r", "model": "m", "status": "in_progress" } }))
}

fn end(response: Value) -> String {
    event(5, "response.completed", json!({ "response": response }))
}

fn right() -> [String; 6] {
    [
        created(),
        delta(1, "reasoning_text", "hm"),
        delta(2, "output_text", "one "),
        delta(3, "output_text", "two"),
        delta(4, "function_call_arguments", "{}"),
        end(response("one two", 4)),
    ]
}

#[test]
fn a_right_stream_has_nothing_to_note() {
    let checked = check(&right().concat());
    assert_eq!(checked.violations, []);
    assert_eq!((checked.text.as_str(), checked.finish_reason.as_deref()), ("one two", Some("completed")));
    let usage = checked.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens), (5, 4, Some(2)));
    let call = Call { id: "c".into(), name: "look".into(), arguments: "{}".into() };
    assert_eq!((checked.finished, checked.error, checked.calls), (true, None, vec![call]));
}

#[test]
fn every_piece_counts_and_nothing_else_does() {
    let (mut events, mut checker) = (Events::default(), Checker::new(EXPECT));
    events.push(right().concat().as_bytes());
    let brought: Vec<bool> = events.rest().iter().map(|event| checker.event(event)).collect();
    assert_eq!(brought, [false, true, true, true, true, false]);
}

#[test]
fn done_at_the_end_is_no_fault_here() {
    assert_eq!(kinds(&(right().concat() + "data: [DONE]\n\n")), []);
}

#[test]
fn each_violation_is_noticed_and_no_other() {
    let all = right();
    let [begin, hm, one, two, call, over] = all.each_ref().map(String::as_str);
    let without_usage = json!({ "id": "r", "model": "m", "status": "completed", "output": [] });
    let with = |name: &str, value: Value| {
        let mut response = response("one two", 4);
        response[name] = value;
        end(response)
    };
    let wrong_sum = json!({ "input_tokens": 5, "output_tokens": 4, "total_tokens": 8 });
    let cases = [
        (ViolationKind::NotAnEvent, [begin, hm, "nonsense\n", one, two, call, over].concat()),
        (ViolationKind::NotJson, [begin, hm, "data: {\"id\":\n\n", one, two, call, over].concat()),
        (ViolationKind::NotAChunk, [begin, hm, "data: {\"id\":\"a\"}\n\n", one, two, call, over].concat()),
        (ViolationKind::IdentityChanged, [begin, hm, one, two, call, &with("id", json!("s"))].concat()),
        (ViolationKind::SequenceBroken, [begin, one, two, call, over].concat()),
        (ViolationKind::TextIsNotWhatCame, [begin, hm, one, two, call, &end(response("one", 4))].concat()),
        (ViolationKind::NeverFinished, [begin, hm, one, two, call].concat()),
        (
            ViolationKind::UsageMissing,
            [begin, &delta(1, "output_text", ""), &{
                event(2, "response.completed", json!({ "response": without_usage }))
            }]
            .concat(),
        ),
        (ViolationKind::UsageDoesNotAddUp, [begin, hm, one, two, call, &with("usage", wrong_sum)].concat()),
        (
            ViolationKind::UsageIsNotWhatCame,
            [begin, hm, one, two, call, &end(response("one two", 3))].concat(),
        ),
        (
            ViolationKind::UsageIsNotWhatCame,
            [begin, hm, one, two, call, &end(response("one two", 5))].concat(),
        ),
        (ViolationKind::SomethingAfterDone, [begin, hm, one, two, call, over, two].concat()),
    ];
    for (kind, stream) in cases {
        assert_eq!(kinds(&stream), [kind], "{stream}");
    }
}

#[test]
fn a_response_that_was_cut_off_says_by_what() {
    let mut cut = response("one two", 4);
    cut["status"] = json!("incomplete");
    cut["incomplete_details"] = json!({ "reason": "max_output_tokens" });
    let [begin, hm, one, two, call, _] = right();
    let over = event(5, "response.incomplete", json!({ "response": cut }));
    let checked = check(&[begin, hm, one, two, call, over].concat());
    assert_eq!((checked.finish_reason.as_deref(), checked.violations), (Some("max_output_tokens"), vec![]));
}

#[test]
fn an_error_is_the_servers_word_and_no_violation() {
    let mut failed = response("", 1);
    failed["status"] = json!("failed");
    failed["error"] = json!({ "code": "server_error", "message": "the group was lost" });
    let in_the_end = event(1, "response.failed", json!({ "response": failed }));
    let alone = event(1, "error", json!({ "code": "x", "message": "the group was lost" }));
    let bare = "data: {\"error\":{\"message\":\"the group was lost\"}}\n\n".to_owned();
    for end in [in_the_end, alone, bare] {
        let checked = check(&[created(), end].concat());
        assert_eq!((checked.error.as_deref(), checked.violations), (Some("the group was lost"), vec![]));
        assert!(!checked.finished);
    }
}

#[test]
fn a_whole_answer_is_read_as_a_stream_is() {
    let usage = json!({ "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8 });
    let call = json!({ "id": "c", "type": "function", "function": { "name": "look", "arguments": "{}" } });
    let message = json!({ "content": "one two", "tool_calls": [call] });
    let chat = json!({ "choices": [{ "index": 0, "message": message, "finish_reason": "tool_calls" }], "usage": usage });
    let raw =
        json!({ "choices": [{ "index": 0, "text": "one two", "finish_reason": "stop" }], "usage": usage });
    let answers = [
        (Endpoint::Chat, chat, "tool_calls", 1),
        (Endpoint::Completions, raw, "stop", 0),
        (Endpoint::Responses, response("one two", 3), "completed", 1),
    ];
    for (endpoint, body, reason, calls) in answers {
        let checked = whole(&Expect { endpoint, ..EXPECT }, &body).unwrap();
        assert_eq!((checked.text.as_str(), checked.finish_reason.as_deref()), ("one two", Some(reason)));
        assert_eq!((checked.finished, checked.calls.len(), checked.violations), (true, calls, vec![]));
        assert_eq!(checked.usage.map(|usage| usage.completion_tokens), Some(3));
    }
}

#[test]
fn what_is_wrong_in_a_whole_answer_is_noticed() {
    let chat = Expect { endpoint: Endpoint::Chat, choices: 2, max_tokens: Some(2) };
    let choice =
        |index: u64| json!({ "index": index, "message": { "content": "a" }, "finish_reason": "stop" });
    let body = |choices: &[u64], tokens: u64, total: u64| {
        let usage = json!({ "prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": total });
        json!({ "choices": choices.iter().map(|index| choice(*index)).collect::<Vec<_>>(), "usage": usage })
    };
    let kinds = |body: &Value| {
        let violations = whole(&chat, body).unwrap().violations;
        violations.iter().map(|violation| violation.kind).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&body(&[1, 0], 4, 5)), []);
    assert_eq!(kinds(&body(&[0, 1, 2], 4, 5)), [ViolationKind::UnknownIndex]);
    assert_eq!(kinds(&body(&[0, 1, 1], 4, 5)), [ViolationKind::UnknownIndex]);
    assert_eq!(kinds(&body(&[0, 1], 4, 6)), [ViolationKind::UsageDoesNotAddUp]);
    assert_eq!(kinds(&body(&[0, 1], 5, 6)), [ViolationKind::UsageIsNotWhatCame]);
    let mut silent = body(&[0, 1], 4, 5);
    silent["usage"] = Value::Null;
    assert_eq!(kinds(&silent), [ViolationKind::UsageMissing]);
    assert!(!whole(&chat, &body(&[0], 1, 2)).unwrap().finished, "one of two choices is missing");
    assert!(whole(&chat, &json!({})).is_none() && whole(&EXPECT, &json!({})).is_none());
    let failed = whole(&chat, &json!({ "error": { "message": "lost" } })).unwrap();
    assert_eq!((failed.error.as_deref(), failed.finished), (Some("lost"), false));
}
