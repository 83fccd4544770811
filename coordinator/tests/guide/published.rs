//! The published vocabulary of 201088 ids: what the published library reads as well formed, a guide lets pass
//! token by token, and no id without a piece is ever allowed.

#[path = "../data/o200k.rs"]
mod o200k;

use std::sync::Arc;

use flotilla_coordinator::guide::{Form, Guides};
use flotilla_coordinator::harmony::Harmony;
use flotilla_coordinator::tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::json;

use crate::model::{answer, json, run, tool};

#[derive(Deserialize)]
struct Golden {
    completions: Vec<Completion>,
}

#[derive(Deserialize)]
struct Completion {
    name: String,
    ids: Vec<u32>,
}

/// As far as they have the format; the others are there to try the parser.
const MALFORMED: [&str; 4] = ["no_channel", "garbage_header", "missing_message", "truncated_in_header"];

#[test]
fn what_models_write_is_let_through_and_padding_never() {
    let tokenizer = Arc::new(Tokenizer::from_file(o200k::tokenizer_json()).unwrap());
    let guides = Guides::new(Harmony::new(tokenizer.clone()).unwrap());
    let golden: Golden = serde_json::from_str(include_str!("../data/harmony_dev.json")).unwrap();

    // Something must be bound, or there would be no guide.
    let mut strict = tool("unrelated", json!({}));
    strict.strict = true;
    let free = ["get_current_weather", "f", "search"].map(|name| tool(name, json!({})));
    let tools = free.into_iter().chain([strict]).collect();
    let pattern = run(guides.turn(Form { tools, ..Form::default() })).unwrap().unwrap();
    let written = golden.completions.iter().filter(|completion| !MALFORMED.contains(&&*completion.name));
    assert_eq!(written.clone().count(), 8);
    for completion in written {
        let mut guide = pattern.guide();
        for token in &completion.ids {
            let mask = guide.mask().unwrap().unwrap();
            let piece = tokenizer.decode(&[*token]);
            assert!(mask.allows(*token), "{}: {piece:?} is not allowed", completion.name);
            guide.advance(*token);
        }
    }

    let person = json!({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]});
    let pattern = run(guides.turn(answer(json(person)))).unwrap().unwrap();
    let mut guide = pattern.guide();
    let said = "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>\
                {\"name\": \"Zoë 🙂\", \"more\": [1, true]}<|return|>";
    for token in tokenizer.encode_special(said) {
        let mask = guide.mask().unwrap().unwrap();
        assert!(mask.allows(token), "{:?} is not allowed", tokenizer.decode(&[token]));
        assert!((200_019..201_088).all(|padding| !mask.allows(padding)));
        assert!([199_998, 200_000, 200_018].iter().all(|special| !mask.allows(*special)), "no stray special");
        guide.advance(token);
    }
}
