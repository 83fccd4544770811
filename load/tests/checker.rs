//! Streams of chat and completions that are right, and for each kind of violation one that is wrong in just that.

use flotilla_load::stream::{Checked, Checker, Endpoint, Events, Expect, ViolationKind};

const EXPECT: Expect = Expect { endpoint: Endpoint::Chat, choices: 1, max_tokens: Some(3) };

fn check(expect: Expect, stream: &str) -> Checked {
    let (mut events, mut checker) = (Events::default(), Checker::new(expect));
    events.push(stream.as_bytes());
    while let Some(event) = events.take() {
        checker.event(&event);
    }
    for event in events.rest() {
        checker.event(&event);
    }
    checker.end(true)
}

fn kinds(stream: &str) -> Vec<ViolationKind> {
    check(EXPECT, stream).violations.iter().map(|violation| violation.kind).collect()
}

fn chunk(rest: &str) -> String {
    format!("data: {{\"id\":\"a\",\"model\":\"m\",\"created\":1,{rest}}}\n\n")
}

fn piece(text: &str) -> String {
    chunk(&format!(r#""choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}]"#))
}

fn finish(reason: &str) -> String {
    chunk(&format!(r#""choices":[{{"index":0,"delta":{{}},"finish_reason":"{reason}"}}]"#))
}

fn usage(prompt: u64, completion: u64, total: u64) -> String {
    chunk(&format!(
        r#""choices":[],"usage":{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{total}}}"#
    ))
}

const DONE: &str = "data: [DONE]\n\n";

/// Two pieces of three tokens, cut off by their number.
fn right() -> [String; 5] {
    [piece("one "), piece("two"), finish("length"), usage(5, 3, 8), DONE.into()]
}

#[test]
fn a_right_stream_has_nothing_to_note() {
    let checked = check(EXPECT, &right().concat());
    assert_eq!(checked.violations, []);
    assert_eq!((checked.text.as_str(), checked.finish_reason.as_deref()), ("one two", Some("length")));
    assert_eq!(checked.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens)), Some((5, 3)));
    assert!(checked.finished && checked.error.is_none());
}

/// A server may count with each piece, or only at the end: beside a piece too.
#[test]
fn tokens_between_are_told_where_the_first_and_the_last_piece_were_counted() {
    let between = |stream: &str| {
        let (mut events, mut checker) = (Events::default(), Checker::new(EXPECT));
        events.push(stream.as_bytes());
        while let Some(event) = events.take() {
            checker.event(&event);
        }
        checker.tokens_between()
    };
    let counted = |tokens: u64| {
        let usage = format!(
            r#""usage":{{"prompt_tokens":1,"completion_tokens":{tokens},"total_tokens":{}}}"#,
            tokens + 1
        );
        chunk(&format!(r#""choices":[{{"index":0,"delta":{{"content":"a"}},"finish_reason":null}}],{usage}"#))
    };
    let cases = [
        (vec![counted(4), counted(5), counted(7)], Some(3)),
        (vec![piece("a"), piece("b"), counted(7)], None),
        (vec![counted(4), piece("b")], None),
        (vec![piece("a"), piece("b"), usage(1, 7, 8)], None),
    ];
    for (stream, expected) in cases {
        assert_eq!(between(&stream.concat()), expected, "{stream:?}");
    }
}

/// The context had room for two of the three tokens that were asked for.
#[test]
fn an_answer_that_the_context_cut_short_is_right() {
    let [one, two, length, _, done] = right();
    assert_eq!(kinds(&[one, two, length, usage(5, 2, 7), done].concat()), []);
}

#[test]
fn usage_that_grows_with_the_chunks_is_right_too() {
    let growing = |text: &str, tokens: u64| {
        chunk(&format!(
            r#""choices":[{{"index":0,"delta":{{"content":"{text}"}},"finish_reason":null}}],"usage":{{"prompt_tokens":5,"completion_tokens":{tokens},"total_tokens":{}}}"#,
            5 + tokens
        ))
    };
    let [.., finish, usage, done] = right();
    let stream = [growing("a", 1), growing("b", 3), finish.clone(), usage.clone(), done.clone()].concat();
    assert_eq!(kinds(&stream), []);
    let shrinking = [growing("a", 3), growing("b", 2), finish, usage, done].concat();
    assert_eq!(kinds(&shrinking), [ViolationKind::UsageDoesNotAddUp]);
}

#[test]
fn each_violation_is_noticed_and_no_other() {
    let all = right();
    let [one, two, length, used, done] = all.each_ref().map(String::as_str);
    let other_id = one.replace("\"id\":\"a\"", "\"id\":\"b\"");
    let cases = [
        (ViolationKind::NotAnEvent, [one, "nonsense\n", two, length, used, done].concat()),
        (ViolationKind::NotJson, [one, "data: {\"id\":\n\n", two, length, used, done].concat()),
        (ViolationKind::NotAChunk, [one, "data: {\"id\":\"a\"}\n\n", two, length, used, done].concat()),
        (ViolationKind::NotAChunk, [one, "data: 7\n\n", two, length, used, done].concat()),
        (ViolationKind::IdentityChanged, [one, &other_id, length, used, done].concat()),
        (
            ViolationKind::UnknownIndex,
            [one, &two.replace("\"index\":0", "\"index\":1"), length, used, done].concat(),
        ),
        (ViolationKind::PieceAfterFinish, [one, length, two, used, done].concat()),
        (ViolationKind::FinishedTwice, [one, two, length, length, used, done].concat()),
        (ViolationKind::NeverFinished, [one, two, used, done].concat()),
        (ViolationKind::UsageMissing, [one, two, length, done].concat()),
        (ViolationKind::UsageTwice, [one, two, length, used, used, done].concat()),
        (ViolationKind::UsageDoesNotAddUp, [one, two, length, &usage(5, 3, 9), done].concat()),
        (ViolationKind::UsageIsNotWhatCame, [one, two, &finish("stop"), &usage(5, 1, 6), done].concat()),
        (ViolationKind::UsageIsNotWhatCame, [one, two, &finish("stop"), &usage(5, 4, 9), done].concat()),
        (ViolationKind::DoneMissing, [one, two, length, used].concat()),
        (ViolationKind::SomethingAfterDone, [one, two, length, used, done, two].concat()),
        (ViolationKind::SomethingAfterDone, [one, two, length, used, done, done].concat()),
    ];
    for (kind, stream) in cases {
        assert_eq!(kinds(&stream), [kind], "{stream}");
    }
}

#[test]
fn an_error_in_the_stream_is_the_servers_word_and_no_violation() {
    let error = "data: {\"error\":{\"message\":\"the group was lost\"}}\n\n";
    let checked = check(EXPECT, &[piece("one").as_str(), error, DONE].concat());
    assert_eq!((checked.error.as_deref(), checked.violations), (Some("the group was lost"), vec![]));
}

#[test]
fn calls_are_put_together_and_reasoning_is_a_piece() {
    let delta =
        |delta: &str| chunk(&format!(r#""choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]"#));
    let stream = [
        delta(r#"{"reasoning_content":"hm"}"#),
        delta(r#"{"tool_calls":[{"index":0,"id":"c1","function":{"name":"look","arguments":"{\"a\""}}]}"#),
        delta(r#"{"tool_calls":[{"index":0,"function":{"arguments":":1}"}}]}"#),
        finish("tool_calls"),
        usage(5, 3, 8),
        DONE.into(),
    ];
    let checked = check(EXPECT, &stream.concat());
    assert_eq!(checked.violations, []);
    let call = &checked.calls[0];
    assert_eq!((call.id.as_str(), call.name.as_str(), call.arguments.as_str()), ("c1", "look", "{\"a\":1}"));
}

#[test]
fn completions_have_their_text_elsewhere_and_may_have_several_choices() {
    let expect = Expect { endpoint: Endpoint::Completions, choices: 2, max_tokens: Some(2) };
    let text = |index: usize, finish: &str| {
        chunk(&format!(r#""choices":[{{"index":{index},"text":"x","finish_reason":{finish}}}]"#))
    };
    let stream = [text(0, "null"), text(1, "\"stop\""), text(0, "\"length\""), usage(4, 3, 7), DONE.into()];
    assert_eq!(check(expect, &stream.concat()).violations, []);
    let half = [text(0, "\"length\""), usage(4, 3, 7), DONE.into()].concat();
    let checked = check(expect, &half);
    assert!(!checked.finished && checked.violations[0].kind == ViolationKind::NeverFinished);
}
