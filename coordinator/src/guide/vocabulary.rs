//! The tokens as llguidance sees them: a trie over their bytes. Special tokens have names in it that no text
//! can spell, and ids without a piece have none.

use std::sync::Arc;

use flotilla_shared::TokenId;
use flotilla_shared::step::TokenMask;
use toktrie::{TokRxInfo, TokTrie, TokenizerEnv};

use crate::harmony::{Harmony, SpecialTokens};
use crate::tokenizer::Tokenizer;

/// Which tokens there are to choose from.
pub struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    trie: TokTrie,
    /// Every token that stands for text: none that is special, none without a piece.
    text: Vec<u32>,
    pub special: SpecialTokens,
}

impl Vocabulary {
    pub fn new(harmony: &Harmony) -> Vocabulary {
        let tokenizer = Arc::clone(harmony.tokenizer());
        let special = *harmony.special();
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32).map(|id| word(&tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, special.return_), &words);
        let is_text = |id: &TokenId| !tokenizer.is_special(*id);
        let text = tokenizer.piece_ids().filter(is_text).collect::<TokenMask>().words().to_vec();
        Vocabulary { tokenizer, trie, text, special }
    }

    /// The token by which llguidance says that the text may end here.
    pub fn end_of_grammar(&self) -> TokenId {
        self.special.return_
    }

    /// All text, and `token`.
    pub fn text_and(&self, token: TokenId) -> TokenMask {
        self.text_among(&self.text, Some(token))
    }

    /// What of `words` is text, and `token`.
    pub fn text_among(&self, words: &[u32], token: Option<TokenId>) -> TokenMask {
        let mut words: Vec<u32> = words.iter().zip(&self.text).map(|(word, text)| word & text).collect();
        if let Some(token) = token {
            let at = token as usize / 32;
            words.resize(words.len().max(at + 1), 0);
            words[at] |= 1 << (token % 32);
        }
        words.into()
    }

    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        self.tokenizer.encode_plain(text)
    }
}

/// Empty: it can never come. A byte 0xff stands in no text, and marks special tokens.
fn word(tokenizer: &Tokenizer, id: TokenId) -> Vec<u8> {
    match tokenizer.decode_bytes(id) {
        Some(name) if tokenizer.is_special(id) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat(),
        Some(bytes) if !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) => bytes.to_vec(),
        Some(_) | None => Vec::new(),
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Where a grammar leaves no choice of text, its tokens are those that the tokenizer would make of it.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.tokenizer.encode_plain(text))
    }
}
