//! Text to token ids and back, for byte-level BPE vocabularies of the make that gpt-oss uses.
//!
//! The crate `tokenizers` gives the merging and the regular expression. Its pipeline is not used: that
//! keeps an alignment for every character, which nobody here reads, and it recognises special tokens
//! inside any text, so that a prompt could open a system message. Here special tokens are looked up
//! by name and placed by whoever renders; text is only ever text.
//!
//! This is deliberately no general tokenizer: a file of another make is refused at start.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokenizers::Model;
use tokenizers::models::bpe::BPE;
use tokenizers::utils::SysRegex;

/// A file whose ids run higher than this is damaged; without a limit, one id could claim all memory.
const IDS_MAX: usize = 1 << 22;

pub struct Tokenizer {
    words: SysRegex,
    bpe: BPE,
    byte_chars: [char; 256],
    /// By id: the bytes a token stands for; none where the vocabulary has a hole.
    pieces: Vec<Option<Box<[u8]>>>,
    specials: BTreeMap<String, u32>,
    special_ids: BTreeSet<u32>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot load tokenizer {}: {fault}\nhint: {}", path.display(), fault.hint())]
pub struct TokenizerError {
    pub path: PathBuf,
    pub fault: TokenizerFault,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenizerFault {
    #[error("{0}")]
    Unreadable(#[source] std::io::Error),
    #[error("not a tokenizer.json of byte-level BPE: {0}")]
    Malformed(#[source] serde_json::Error),
    #[error("{0} is set, which byte-level BPE of gpt-oss does not use")]
    UnsupportedSetting(&'static str),
    #[error("its word pattern does not compile: {0}")]
    WordPattern(String),
    #[error("token {id} holds {character:?}, which stands for no byte")]
    NotByteLevel { id: u32, character: char },
    #[error("no token stands for the single byte {0:#04x}")]
    MissingByte(u8),
    #[error("token id {0} is beyond {IDS_MAX}")]
    IdTooLarge(u32),
    #[error("token id {0} is given to two tokens")]
    DuplicateId(u32),
}

impl TokenizerFault {
    fn hint(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => {
                "the model directory must hold the tokenizer.json published with the weights"
            }
            Self::Malformed(_) => {
                "a download may be cut short, or a Git LFS pointer stand in the file's place"
            }
            _ => "only tokenizers of the gpt-oss make are served; take the file published with the weights",
        }
    }
}

impl Tokenizer {
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        fs::read(path)
            .map_err(TokenizerFault::Unreadable)
            .and_then(|json| Self::from_json(&json))
            .map_err(|fault| TokenizerError { path: path.to_owned(), fault })
    }

    /// From the text of a `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerFault> {
        let file: TokenizerFile = serde_json::from_slice(json).map_err(TokenizerFault::Malformed)?;
        file.refuse_unsupported()?;
        let PreTokenizer::Sequence { pretokenizers: (split, _) } = &file.pre_tokenizer;
        let words = SysRegex::new(&split.pattern.regex)
            .map_err(|fault| TokenizerFault::WordPattern(fault.to_string()))?;
        let byte_chars = byte_chars();
        let pieces = pieces(&file, &byte_chars)?;
        let special_ids = file.added_tokens.iter().map(|token| token.id).collect();
        let specials = file.added_tokens.into_iter().map(|token| (token.content, token.id)).collect();
        Ok(Self { words, bpe: file.model, byte_chars, pieces, specials, special_ids })
    }

    /// The ids of `text` as text: `<|start|>` in it becomes several ordinary tokens.
    pub fn encode_plain(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.encode_plain_into(text, &mut ids);
        ids
    }

    pub fn encode_plain_into(&self, text: &str, ids: &mut Vec<u32>) {
        let (mut rest, mut spelled) = (text, String::new());
        while !rest.is_empty() {
            let mut encoded_bytes = 0;
            for (start, end) in self.words.find_iter(rest) {
                self.encode_word(&rest[encoded_bytes..start], &mut spelled, ids);
                self.encode_word(&rest[start..end], &mut spelled, ids);
                encoded_bytes = end;
            }
            // The pattern covers every text: if some is left, the regex engine gave up at a word.
            rest = &rest[encoded_bytes..];
            let (word, behind) = rest.split_at(given_up_word(rest));
            self.encode_word(word, &mut spelled, ids);
            rest = behind;
        }
    }

    /// The ids of `text` with special tokens recognised. For text we wrote ourselves, never a client's.
    pub fn encode_special(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut plain_start = 0;
        let mut at = 0;
        while at < text.len() {
            let Some((name, id)) = self.special_at(&text[at..]) else {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
                continue;
            };
            self.encode_plain_into(&text[plain_start..at], &mut ids);
            ids.push(id);
            at += name.len();
            plain_start = at;
        }
        self.encode_plain_into(&text[plain_start..], &mut ids);
        ids
    }

    /// The id of a special token, such as `<|start|>`.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.specials.get(name).copied()
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// The bytes a token stands for, a special token's being its name. None for ids without a token:
    /// gpt-oss pads its vocabulary, and a model can be handed any id.
    pub fn decode_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id as usize)?.as_deref()
    }

    /// The text of `ids`; ids without a piece count for nothing, invalid UTF-8 is replaced.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().filter_map(|id| self.decode_bytes(*id)).flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One more than the highest id that has a piece. The model's own vocabulary is padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The ids that have a piece, ascending. Only these may be sampled.
    pub fn piece_ids(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.pieces).filter(|(_, piece)| piece.is_some()).map(|(id, _)| id)
    }

    fn encode_word(&self, word: &str, spelled: &mut String, ids: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        spelled.clear();
        spelled.extend(word.bytes().map(|byte| self.byte_chars[usize::from(byte)]));
        if let Some(id) = self.bpe.token_to_id(spelled) {
            return ids.push(id);
        }
        let tokens = self.bpe.tokenize(spelled).expect("every byte has a token, as checked at load");
        ids.extend(tokens.iter().map(|token| token.id));
    }

    fn special_at(&self, text: &str) -> Option<(&str, u32)> {
        let names = self.specials.iter().filter(|(name, _)| text.starts_with(name.as_str()));
        names.max_by_key(|(name, _)| name.len()).map(|(name, id)| (name.as_str(), *id))
    }
}

/// Where the first word of `text` ends, by which the regex engine gave up. It does so at a million blanks, for it
/// remembers each of them. The pattern (`\s*[\r\n]+|\s+(?!\S)|\s+`) takes of such a run what goes to its last line end;
/// without one, all where nothing follows, and else all but its last character.
fn given_up_word(text: &str) -> usize {
    let run = &text[..text.find(|character: char| !character.is_whitespace()).unwrap_or(text.len())];
    let line_end = run.rfind(['\r', '\n']).map(|at| at + 1);
    let but_last = run.char_indices().next_back().map(|(at, _)| at);
    match (line_end, but_last) {
        (Some(end), _) => end,
        (None, Some(end)) if run.len() < text.len() && end > 0 => end,
        // It does not give up at anything else that is known; then the rest is one long word.
        _ => text.len(),
    }
}

/// Joins the tokens of one text as they come. A character may be spread over several tokens: its bytes
/// are held back until it is whole, so what has been given out is never taken back.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    held: Vec<u8>,
}

impl TextStream {
    /// The text that `id` completes; empty for an id without a piece.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        self.push_bytes(tokenizer.decode_bytes(id).unwrap_or_default())
    }

    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        while let Some(end) = self.take_valid(&mut text) {
            self.held.drain(..end);
        }
        text
    }

    /// The end of the text: half a character left over becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }

    /// Moves held text up to the first invalid byte, which it replaces. How many bytes that used up;
    /// None when nothing is left but the beginning of a character.
    fn take_valid(&self, text: &mut String) -> Option<usize> {
        let (valid, invalid_bytes) = match str::from_utf8(&self.held) {
            Ok(valid) => (valid.len(), 0),
            Err(fault) => (fault.valid_up_to(), fault.error_len().unwrap_or(0)),
        };
        text.push_str(str::from_utf8(&self.held[..valid]).expect("just checked"));
        if invalid_bytes > 0 {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        let used = valid + invalid_bytes;
        (used > 0).then_some(used)
    }
}

#[derive(Deserialize)]
struct TokenizerFile {
    added_tokens: Vec<AddedToken>,
    normalizer: Option<IgnoredAny>,
    pre_tokenizer: PreTokenizer,
    model: BPE,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizer {
    Sequence { pretokenizers: (Split, ByteLevel) },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename = "Split")]
struct Split {
    pattern: Pattern,
    behavior: SplitBehavior,
    invert: bool,
}

#[derive(Deserialize)]
struct Pattern {
    #[serde(rename = "Regex")]
    regex: String,
}

#[derive(Deserialize)]
enum SplitBehavior {
    Isolated,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename = "ByteLevel")]
struct ByteLevel {
    add_prefix_space: bool,
    use_regex: bool,
}

impl TokenizerFile {
    /// Each of these would change the ids without a trace if it were passed over.
    fn refuse_unsupported(&self) -> Result<(), TokenizerFault> {
        let PreTokenizer::Sequence { pretokenizers: (split, bytes) } = &self.pre_tokenizer;
        let SplitBehavior::Isolated = split.behavior;
        let settings = [
            (self.normalizer.is_some(), "normalizer"),
            (split.invert, "pre_tokenizer.invert"),
            (bytes.add_prefix_space, "pre_tokenizer.add_prefix_space"),
            (bytes.use_regex, "pre_tokenizer.use_regex"),
            (self.model.dropout.is_some(), "model.dropout"),
            (self.model.unk_token.is_some(), "model.unk_token"),
            (self.model.continuing_subword_prefix.is_some(), "model.continuing_subword_prefix"),
            (self.model.end_of_word_suffix.is_some(), "model.end_of_word_suffix"),
            (self.model.byte_fallback, "model.byte_fallback"),
            (!self.model.ignore_merges, "model.ignore_merges = false"),
        ];
        match settings.into_iter().find(|(set, _)| *set) {
            Some((_, name)) => Err(TokenizerFault::UnsupportedSetting(name)),
            None => Ok(()),
        }
    }
}

fn pieces(file: &TokenizerFile, byte_chars: &[char; 256]) -> Result<Vec<Option<Box<[u8]>>>, TokenizerFault> {
    let vocab = file.model.get_vocab();
    if let Some((byte, _)) = (0..=255).zip(byte_chars).find(|(_, c)| !vocab.contains_key(&c.to_string())) {
        return Err(TokenizerFault::MissingByte(byte));
    }
    let bytes: HashMap<char, u8> = byte_chars.iter().copied().zip(0..=255).collect();
    let mut pieces = Vec::new();
    for (spelled, id) in &vocab {
        let byte_of = |character| bytes.get(&character).copied().ok_or(character);
        let piece = spelled.chars().map(byte_of).collect::<Result<_, char>>();
        place(
            &mut pieces,
            *id,
            piece.map_err(|character| TokenizerFault::NotByteLevel { id: *id, character })?,
        )?;
    }
    for token in &file.added_tokens {
        place(&mut pieces, token.id, token.content.as_bytes().into())?;
    }
    Ok(pieces)
}

fn place(pieces: &mut Vec<Option<Box<[u8]>>>, id: u32, piece: Box<[u8]>) -> Result<(), TokenizerFault> {
    let index = id as usize;
    if index >= IDS_MAX {
        return Err(TokenizerFault::IdTooLarge(id));
    }
    if pieces.len() <= index {
        pieces.resize(index + 1, None);
    }
    match pieces[index].replace(piece) {
        Some(_) => Err(TokenizerFault::DuplicateId(id)),
        None => Ok(()),
    }
}

/// Byte-level BPE spells each byte as one printable character: as itself where it is one, else as the
/// next from U+0100 upwards.
fn byte_chars() -> [char; 256] {
    let mut moved = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => moved.next().expect("68 characters from U+0100"),
    })
}
