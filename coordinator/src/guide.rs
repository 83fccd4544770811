//! What keeps an answer to a form: which tokens may come next in one sequence.

use flotilla_shared::TokenId;
use flotilla_shared::step::TokenMask;

/// Follows one sequence, token by token. The driver asks for a mask before each token is sampled, off the
/// threads that serve.
pub trait Guide: Send {
    /// Takes in a token that was generated.
    fn advance(&mut self, token: TokenId);

    /// The tokens that may come next; `None`: all of them.
    fn mask(&mut self) -> Option<TokenMask>;
}
