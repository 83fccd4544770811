//! An answer that came as one body: what a stream is asked, as far as a body can say it.

use super::answer::{Endpoint, text_of_response, words};
use super::{Call, Checked, Expect, Usage, ViolationKind};
use serde_json::Value;

/// None: it is no answer of this endpoint.
pub fn whole(expect: &Expect, body: &Value) -> Option<Checked> {
    let mut checked = Checked::default();
    if let Some(error) = body.get("error").filter(|error| !error.is_null()) {
        checked.error = Some(words(error));
    } else if expect.endpoint == Endpoint::Responses {
        body["status"].as_str()?;
        checked.end_of_response(body);
        checked.text = text_of_response(body);
    } else {
        choices(&mut checked, expect, body)?;
        checked.usage = Usage::read(&body["usage"]);
    }
    if checked.finished {
        check(&mut checked, expect, body);
    }
    Some(checked)
}

fn choices(checked: &mut Checked, expect: &Expect, body: &Value) -> Option<()> {
    let choices = body["choices"].as_array()?;
    let mut ended = vec![false; expect.choices];
    for choice in choices {
        let index = choice["index"].as_u64().unwrap_or(u64::MAX) as usize;
        match ended.get_mut(index) {
            Some(ended) if !*ended => *ended = choice["finish_reason"].is_string(),
            _ => checked.note(ViolationKind::UnknownIndex, &choice.to_string()),
        }
        if index == 0 {
            first(checked, expect, choice);
        }
    }
    checked.finished = ended.iter().all(|ended| *ended);
    Some(())
}

/// The first choice's text is kept: it is what a conversation goes on with.
fn first(checked: &mut Checked, expect: &Expect, choice: &Value) {
    let message = &choice["message"];
    let content = if expect.endpoint == Endpoint::Chat { &message["content"] } else { &choice["text"] };
    checked.text = text(content);
    checked.finish_reason = choice["finish_reason"].as_str().map(str::to_owned);
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    checked.calls = calls.map(call).collect();
}

fn call(call: &Value) -> Call {
    let function = &call["function"];
    Call { id: text(&call["id"]), name: text(&function["name"]), arguments: text(&function["arguments"]) }
}

fn check(checked: &mut Checked, expect: &Expect, body: &Value) {
    if checked.usage.is_some_and(|usage| !usage.adds_up()) {
        checked.note(ViolationKind::UsageDoesNotAddUp, &body["usage"].to_string());
    }
    checked.check_usage(expect, 0);
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
