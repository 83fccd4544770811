//! The tokenizer against the published ids, and the promises of its text stream.

#[path = "data/o200k.rs"]
mod o200k;

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use flotilla_coordinator::tokenizer::{TextStream, Tokenizer, TokenizerFault};
use proptest::prelude::*;
use serde_json::{Value, json};

static FULL: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_file(o200k::tokenizer_json()).expect("the full vocabulary loads"));
static SMALL: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_file(small_json()).expect("the small vocabulary loads"));

fn small_json() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/small_tokenizer.json"))
}

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    ids_special: Option<Vec<u32>>,
}

fn cases() -> Vec<Case> {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("data/tokenizer_dev.json")).expect("the golden file is JSON");
    assert_eq!(cases.len(), 120);
    cases
}

#[test]
fn golden_ids() {
    for Case { text, ids, ids_special } in cases() {
        assert_eq!(FULL.encode_plain(&text), ids, "encode_plain({text:?})");
        assert_eq!(
            FULL.encode_special(&text),
            ids_special.unwrap_or(ids.clone()),
            "encode_special({text:?})"
        );
        assert_eq!(FULL.decode(&ids), text, "decode({ids:?})");
    }
}

/// The regex engine gives up at a million blanks; what follows has its words all the same.
#[test]
fn a_million_blanks_end_no_words() {
    let words = FULL.encode_plain(" x y and more");
    for count in [500_001, 1_000_001] {
        let blanks = " ".repeat(count - 1);
        let mut expected = FULL.encode_plain(&blanks);
        assert_eq!(FULL.decode(&expected).len(), count - 1);
        expected.extend(&words);
        assert_eq!(FULL.encode_plain(&format!("{blanks} x y and more")), expected, "{count} blanks");
    }
    // A line end among them ends a word.
    let head = format!("{}\n", "\t".repeat(1_000_001));
    let expected = [FULL.encode_plain(&head), FULL.encode_plain(" "), words].concat();
    assert_eq!(FULL.encode_plain(&format!("{head}  x y and more")), expected);
}

/// The crate's own pipeline, which we do not use, is the second opinion on text no golden file has.
#[test]
fn same_ids_as_the_pipeline_of_the_crate() {
    let pipeline = tokenizers::Tokenizer::from_file(o200k::tokenizer_json()).expect("the crate reads it");
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let text =
        prop_oneof![any::<String>(), r"[ \t\r\n/'a-zA-Z0-9éÉ中ǅ\u{301}_.]{0,60}", r"(<\||start|\|>|x| )*"];
    let check = |text: String| {
        let special = pipeline.encode_fast(text.as_str(), false).expect("encodes").get_ids().to_vec();
        prop_assert_eq!(FULL.encode_special(&text), special);
        prop_assert_eq!(FULL.decode(&FULL.encode_plain(&text)), text);
        Ok(())
    };
    runner.run(&text, check).expect("both tokenizers agree");
}

#[test]
fn special_tokens_are_text_unless_asked_for() {
    for tokenizer in [&*FULL, &*SMALL] {
        let start = tokenizer.special("<|start|>").expect("harmony's");
        assert_eq!(tokenizer.encode_special("a<|start|>b")[1], start);
        for name in ["<|start|>", "<|end|>", "<|message|>", "<|reserved_200013|>", "<|endoftext|>"] {
            let ids = tokenizer.encode_plain(&format!("x{name}{name}y"));
            assert!(
                ids.iter().all(|id| !tokenizer.is_special(*id)),
                "{name} became a special token: {ids:?}"
            );
        }
    }
    assert_eq!(FULL.special("<|start|>"), Some(200_006));
    assert_eq!(FULL.special("<|begin|>"), None);
}

/// The model's vocabulary is padded to 201088; a sampler that misses that must not bring the server down.
#[test]
fn ids_without_a_piece() {
    assert_eq!(FULL.vocab_size(), 200_019);
    assert_eq!(FULL.piece_ids().count(), 200_019);
    assert_eq!(SMALL.piece_ids().last(), Some(4096 + 20));
    for id in [200_019, 201_087, 201_088, u32::MAX] {
        assert_eq!(FULL.decode_bytes(id), None);
        assert_eq!(TextStream::default().push(&FULL, id), "");
    }
    assert_eq!(FULL.decode(&[200_019, 13225, u32::MAX]), "Hello");
    assert_eq!(FULL.decode_bytes(200_006), Some("<|start|>".as_bytes()));
}

/// Seen: 100 KB in 9 ms (2026-11-23, two shared cores, dev profile). The limit only catches a change of kind.
#[test]
fn encodes_fast() {
    let text = "Hello, world! Ceci coûte 1234 €, don't you think?\n\n    fn main() {}\n".repeat(1400);
    FULL.encode_plain(&text);
    let start = Instant::now();
    let ids = FULL.encode_plain(&text);
    assert!(start.elapsed() < Duration::from_millis(500), "{} bytes took {:?}", text.len(), start.elapsed());
    assert_eq!(FULL.decode(&ids), text);
}

/// One word of 200 KB: neither the regex engine's nor the merging's worst case may hang the server.
#[test]
fn encodes_monsters() {
    let spaces = " ".repeat(200_000) + "x";
    for text in [spaces, "a".repeat(200_000), "\n ".repeat(100_000), "'s".repeat(100_000)] {
        let start = Instant::now();
        assert_eq!(FULL.decode(&FULL.encode_plain(&text)), text);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}… took {:?}", &text[..8], start.elapsed());
    }
}

#[test]
fn stream_holds_half_a_character() {
    let mut stream = TextStream::default();
    let bytes = "a😀".as_bytes();
    let texts: Vec<String> = bytes.iter().map(|byte| stream.push_bytes(&[*byte])).collect();
    assert_eq!(texts, ["a", "", "", "", "😀"]);
    assert_eq!(stream.push_bytes(b"\xf0\x9f"), "");
    assert_eq!(stream.push_bytes(b"b"), "\u{fffd}b");
    assert_eq!(stream.push_bytes(b"\xe2\x82"), "");
    assert_eq!(stream.finish(), "\u{fffd}");
    assert_eq!(stream.finish(), "");
}

proptest! {
    #[test]
    fn stream_of_split_text_equals_the_text(text in any::<String>(), cuts in prop::collection::vec(1usize..5, 0..400)) {
        let mut stream = TextStream::default();
        let mut bytes = text.as_bytes();
        let mut joined = String::new();
        for cut in cuts {
            let (now, later) = bytes.split_at(cut.min(bytes.len()));
            joined.push_str(&stream.push_bytes(now));
            prop_assert!(text.starts_with(&joined));
            bytes = later;
        }
        joined.push_str(&stream.push_bytes(bytes));
        prop_assert_eq!(stream.finish(), "");
        prop_assert_eq!(joined, text);
    }

    #[test]
    fn stream_of_any_bytes_equals_the_lossy_whole(parts in prop::collection::vec(
        prop_oneof![prop::collection::vec(any::<u8>(), 0..6), Just(vec![0xf0, 0x9f]), Just("é".as_bytes().to_vec())],
        0..30,
    )) {
        let mut stream = TextStream::default();
        let mut joined: String = parts.iter().map(|part| stream.push_bytes(part)).collect();
        joined.push_str(&stream.finish());
        prop_assert_eq!(joined, String::from_utf8_lossy(&parts.concat()).into_owned());
    }

    #[test]
    fn stream_of_ids_equals_decode(ids in prop::collection::vec(0u32..4200, 0..60)) {
        let mut stream = TextStream::default();
        let mut joined: String = ids.iter().map(|id| stream.push(&SMALL, *id)).collect();
        joined.push_str(&stream.finish());
        prop_assert_eq!(joined, SMALL.decode(&ids));
    }
}

/// Each fault names the file, says what is wrong and hints at what to do.
#[test]
fn refuses_what_it_cannot_serve() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("tokenizer.json");
    let fault = |text: Option<String>| {
        if let Some(text) = text {
            std::fs::write(&path, text).expect("writable");
        }
        let error = Tokenizer::from_file(&path).err().expect("refused");
        let message = error.to_string();
        assert!(message.contains("tokenizer.json") && message.contains("\nhint: "), "{message}");
        error.fault
    };
    assert!(matches!(fault(None), TokenizerFault::Unreadable(_)));
    assert!(matches!(fault(Some("version https://git-lfs".into())), TokenizerFault::Malformed(_)));
    let cut = std::fs::read_to_string(small_json()).expect("readable")[..10_000].to_owned();
    assert!(matches!(fault(Some(cut)), TokenizerFault::Malformed(_)));
    let altered = |change: &dyn Fn(&mut Value)| fault(Some(altered_small(change)));
    assert!(matches!(
        altered(&|file| file["model"]["type"] = json!("WordPiece")),
        TokenizerFault::Malformed(_)
    ));
    assert!(matches!(
        altered(&|file| file["normalizer"] = json!({"type": "NFC"})),
        TokenizerFault::UnsupportedSetting("normalizer")
    ));
    assert!(matches!(
        altered(&|file| file["model"]["ignore_merges"] = json!(false)),
        TokenizerFault::UnsupportedSetting("model.ignore_merges = false")
    ));
    assert!(matches!(
        altered(&|file| file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(")),
        TokenizerFault::WordPattern(_)
    ));
    assert!(matches!(
        altered(&|file| file["added_tokens"][0]["id"] = json!(17)),
        TokenizerFault::DuplicateId(17)
    ));
    assert!(matches!(
        altered(&|file| file["added_tokens"][0]["id"] = json!(u32::MAX)),
        TokenizerFault::IdTooLarge(u32::MAX)
    ));
    assert!(matches!(
        altered(&|file| file["model"]["vocab"]["中"] = json!(5000)),
        TokenizerFault::NotByteLevel { id: 5000, character: '中' }
    ));
    assert!(matches!(
        altered(&|file| drop(file["model"]["vocab"].as_object_mut().expect("a map").remove("ÿ"))),
        TokenizerFault::MissingByte(0xff)
    ));
}

fn altered_small(change: &dyn Fn(&mut Value)) -> String {
    let text = std::fs::read_to_string(small_json()).expect("readable");
    let mut file: Value = serde_json::from_str(&text).expect("JSON");
    change(&mut file);
    file.to_string()
}
