//! What clients and models send, as entries for fuzzers: none may panic, whatever the bytes are.

use crate::api::fuzz_body;
use crate::harmony::Harmony;
use crate::tokenizer::Tokenizer;
use std::sync::{Arc, LazyLock};

/// A body of a request, of each endpoint that takes one.
pub fn body(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice(bytes) {
        fuzz_body(value);
    }
}

/// A tokenizer.json.
pub fn tokenizer(bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_json(bytes) {
        let ids = tokenizer.encode_special("Hello, <|start|>assistant");
        tokenizer.decode(&ids);
    }
}

static DEMO: LazyLock<Harmony> = LazyLock::new(|| {
    let json = include_bytes!("../../demo/model/tokenizer.json");
    let tokenizer = Tokenizer::from_json(json).expect("the demo's tokenizer is good");
    Harmony::new(Arc::new(tokenizer)).expect("it has the format's tokens")
});

/// An answer of a model: two bytes a token, special ones more often than by chance.
pub fn harmony(bytes: &[u8]) {
    let size = DEMO.tokenizer().vocab_size() as u32;
    let id = |pair: &[u8; 2]| match pair {
        // The format's tokens are the last ones.
        [special, 255] => size.saturating_sub(1 + u32::from(special % 24)),
        pair => u32::from(u16::from_le_bytes(*pair)) % (size + 3),
    };
    let mut parser = DEMO.parser();
    let mut said = 0;
    for id in bytes.as_chunks::<2>().0.iter().map(id) {
        said += parser.push(id).len();
        parser.header();
    }
    said += parser.finish().len();
    assert!(said <= 4 * bytes.len() + 8, "{said} events");
    parser.into_reply();
}

#[cfg(test)]
#[path = "../../tests/support/mutate.rs"]
mod mutate;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_that_are_nearly_requests() {
        let seeds: [&[u8]; 5] = [
            br#"{"model":"m","messages":[{"role":"developer","content":"Be brief"},{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_tokens":5,"temperature":0.7,"stop":["a"],"stream":true,"stream_options":{"include_usage":true},"logit_bias":{"5":-1},"n":2,"seed":1}"#,
            br##"{"messages":[{"role":"user","content":"x"},{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"1"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"integer"}}}}}],"tool_choice":"auto","response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"array","items":{"$ref":"#"}}}},"reasoning_effort":"low"}"##,
            br#"{"prompt":["a","b"],"max_tokens":1,"logprobs":3,"echo":false,"top_k":5,"min_p":0.1,"presence_penalty":1}"#,
            br#"{"prompt":[[1,2],[3]],"suffix":null,"best_of":1,"guided_regex":"a+"}"#,
            br#"{"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"1"}],"instructions":"x","reasoning":{"effort":"high"},"text":{"format":{"type":"text"}},"previous_response_id":"resp_1","store":true,"metadata":{"a":"b"}}"#,
        ];
        mutate::each(&seeds, 60_000, body);
    }

    #[test]
    fn answers_that_are_nearly_harmony() {
        let size = DEMO.tokenizer().vocab_size() as u32;
        let ids = DEMO.tokenizer().encode_special(
            "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        );
        let pair = |id: u32| match size - 1 - id {
            back @ 0..24 => [back as u8, 255],
            _ => (id as u16).to_le_bytes(),
        };
        let answer: Vec<u8> = ids.into_iter().flat_map(pair).collect();
        mutate::each(&[&answer, b"\x01\xff\x02\xff\x03\xff", &[0, 255, 5, 0, 9, 9]], 60_000, harmony);
    }

    #[test]
    fn files_that_are_nearly_tokenizers() {
        // Small, so that many can be tried.
        let small = br##"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":6,"content":"<|start|>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{L}+|\\s+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":true,"vocab":{"a":0,"b":1,"H":2,"e":3,"ab":4,"He":5},"merges":[["a","b"],["H","e"]]}}"##;
        mutate::each(&[small], 20_000, tokenizer);
    }
}
