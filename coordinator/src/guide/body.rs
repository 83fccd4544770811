//! The text of one message under a grammar, and the token that ends it.

use std::sync::Arc;

use flotilla_shared::TokenId;
use flotilla_shared::step::TokenMask;
use llguidance::Matcher;

use super::vocabulary::Vocabulary;

pub struct Body {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
    /// Ends the message, where the grammar lets it end.
    closing: TokenId,
}

impl Body {
    pub fn new(matcher: Matcher, vocabulary: Arc<Vocabulary>, closing: TokenId) -> Body {
        Body { matcher, vocabulary, closing }
    }

    pub fn closing(&self) -> TokenId {
        self.closing
    }

    /// Takes in a token that does not end it.
    pub fn advance(&mut self, token: TokenId) {
        if let Err(error) = self.matcher.consume_token(token) {
            tracing::warn!(token, %error, "a token left the grammar; the message ends here");
        }
    }

    pub fn mask(&mut self) -> TokenMask {
        if self.matcher.is_stopped() {
            return self.ended();
        }
        match self.matcher.compute_mask() {
            Ok(allowed) => {
                let closing = allowed.is_allowed(self.vocabulary.end_of_grammar()).then_some(self.closing);
                let mask = self.vocabulary.text_among(allowed.as_slice(), closing);
                if mask.words().iter().all(|word| *word == 0) { self.ended() } else { mask }
            }
            Err(error) => {
                tracing::warn!(%error, "the grammar leads nowhere; the message ends here");
                self.ended()
            }
        }
    }

    fn ended(&self) -> TokenMask {
        TokenMask::from_iter([self.closing])
    }
}
