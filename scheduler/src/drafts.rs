//! Guesses at the next tokens: what followed the last time that the sequence's last tokens stood together
//! (prompt lookup). Costs nothing but a search, and is right where an answer repeats its prompt: summaries,
//! corrected code, translations of lists. The workers keep what they would have chosen anyway.

use flotilla_shared::TokenId;

/// How guesses are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speculation {
    /// Guesses a sequence and step at most. Default 4: each costs a row of a step.
    pub drafts_max: usize,
    /// Tokens that must agree, at most and at least. Defaults 4 and 2: one token alone says little.
    pub ngram_max: usize,
    pub ngram_min: usize,
}

impl Default for Speculation {
    fn default() -> Speculation {
        Speculation { drafts_max: 4, ngram_max: 4, ngram_min: 2 }
    }
}

/// So far back is searched: 8192 tokens in some microseconds.
const SEARCH_TOKENS: usize = 8192;

/// Appends up to `count` guesses to `drafts`: what followed the latest earlier occurrence of the longest
/// ending that has one.
pub fn propose(tokens: &[TokenId], speculation: &Speculation, count: usize, drafts: &mut Vec<TokenId>) {
    let tokens = &tokens[tokens.len().saturating_sub(SEARCH_TOKENS)..];
    for length in (speculation.ngram_min..=speculation.ngram_max).rev() {
        let Some(end) = tokens.len().checked_sub(length).filter(|_| length > 0) else { continue };
        let (earlier, ending) = (&tokens[..tokens.len() - 1], &tokens[end..]);
        if let Some(found) = earlier.windows(length).rposition(|window| window == ending) {
            let follows = &tokens[found + length..];
            return drafts.extend_from_slice(&follows[..count.min(follows.len())]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(tokens: &[TokenId], count: usize) -> Vec<TokenId> {
        let mut drafts = Vec::new();
        propose(tokens, &Speculation::default(), count, &mut drafts);
        drafts
    }

    #[test]
    fn what_followed_last_time_is_guessed() {
        assert_eq!(drafts(&[1, 2, 3, 4, 5, 9, 2, 3], 2), [4, 5]);
        assert_eq!(drafts(&[1, 2, 3, 7, 2, 3, 8, 2, 3], 1), [8], "the latest occurrence");
        assert_eq!(drafts(&[0, 1, 2, 3, 7, 9, 3, 8, 1, 2, 3], 1), [7], "the longest ending");
        assert_eq!(drafts(&[5, 5, 5], 4), [5], "an occurrence may overlap the ending");
    }

    #[test]
    fn nothing_is_guessed_of_what_never_stood_there() {
        assert!(drafts(&[1, 2, 3, 4], 4).is_empty());
        assert!(drafts(&[1], 4).is_empty() && drafts(&[], 4).is_empty());
        assert!(drafts(&[1, 2, 1, 2], 0).is_empty());
    }
}
