//! The text of one message under a grammar, and the token that ends it.

use std::sync::Arc;

use flotilla_shared::TokenId;
use flotilla_shared::step::TokenMask;
use llguidance::Matcher;
use llguidance::api::StopReason;

use super::Exhausted;
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

    /// Takes in a token that does not end it. Where that fails, there is no mask after it.
    pub fn advance(&mut self, token: TokenId) {
        if let Err(error) = self.matcher.consume_token(token) {
            tracing::debug!(token, %error, "a token left the grammar");
        }
    }

    pub fn mask(&mut self) -> Result<TokenMask, Exhausted> {
        let reason = self.matcher.stop_reason();
        if reason != StopReason::NotStopped {
            let ended = TokenMask::from_iter([self.closing]);
            return if reason.is_ok() { Ok(ended) } else { Err(self.exhausted()) };
        }
        let allowed = self.matcher.compute_mask().map_err(|_| self.exhausted())?;
        let closing = allowed.is_allowed(self.vocabulary.end_of_grammar()).then_some(self.closing);
        let mask = self.vocabulary.text_among(allowed.as_slice(), closing);
        match mask.words().iter().any(|word| *word != 0) {
            true => Ok(mask),
            false => Err(Exhausted { what: "no token may come next".to_owned() }),
        }
    }

    /// llguidance's own words, but for what follows them of its state.
    fn exhausted(&self) -> Exhausted {
        let said = self.matcher.get_error().unwrap_or_else(|| self.matcher.stop_reason().to_string());
        Exhausted { what: said.lines().next().unwrap_or_default().to_owned() }
    }
}
