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
    let (mut longest, mut found) = (speculation.ngram_min.saturating_sub(1), None);
    for end in (1..tokens.len()).rev() {
        let length = agreeing(&tokens[..end], tokens, speculation.ngram_max);
        if length > longest {
            (longest, found) = (length, Some(end));
            if length == speculation.ngram_max {
                break;
            }
        }
    }
    let follows = found.map_or(&[][..], |end| &tokens[end..]);
    drafts.extend_from_slice(&follows[..count.min(follows.len())]);
}

/// With so many tokens, up to `most`, both end.
fn agreeing(earlier: &[TokenId], tokens: &[TokenId], most: usize) -> usize {
    let pairs = earlier.iter().rev().zip(tokens.iter().rev());
    pairs.take(most).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_shared::sampling::mix;

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

    /// Against the definition, length by length.
    #[test]
    fn one_pass_finds_what_a_search_for_each_length_finds() {
        let by_length = |tokens: &[TokenId], it: &Speculation| {
            (it.ngram_min..=it.ngram_max).rev().find_map(|length| {
                let end = tokens.len().checked_sub(length)?;
                let mut windows = tokens[..tokens.len() - 1].windows(length);
                let found = windows.rposition(|window| window == &tokens[end..])?;
                Some(tokens[found + length..].to_vec())
            })
        };
        for seed in 0..4000u64 {
            let kinds = 1 + seed % 5;
            let token = |at| (mix(seed << 32 | at) % kinds) as TokenId;
            let tokens: Vec<TokenId> = (0..1 + seed % 23).map(token).collect();
            let ngram_min = 1 + (seed / 5 % 3) as usize;
            let it =
                Speculation { drafts_max: 9, ngram_min, ngram_max: ngram_min + (seed / 15 % 3) as usize };
            let mut found = Vec::new();
            propose(&tokens, &it, usize::MAX, &mut found);
            assert_eq!(found, by_length(&tokens, &it).unwrap_or_default(), "seed {seed}: {it:?}, {tokens:?}");
        }
    }
}
