//! An answer of at least so many tokens: until then what would end it is masked, in text that is free as in text
//! that a form binds. A form that can only end ends all the same.

use flotilla_shared::TokenId;
use flotilla_shared::step::TokenMask;

use super::{Exhausted, Guide};

pub struct AtLeast {
    /// Tokens that must still come.
    left: usize,
    ends: Vec<TokenId>,
    /// All that may come where nothing else binds, but the ends.
    going_on: TokenMask,
    form: Option<Box<dyn Guide>>,
}

impl AtLeast {
    /// `all`: every token that has a piece.
    pub fn new(tokens: usize, ends: &[TokenId], all: &TokenMask, form: Option<Box<dyn Guide>>) -> AtLeast {
        let going_on = without(all, ends).unwrap_or_else(|| all.clone());
        AtLeast { left: tokens, ends: ends.to_vec(), going_on, form }
    }
}

impl Guide for AtLeast {
    fn advance(&mut self, token: TokenId) {
        self.left = self.left.saturating_sub(1);
        self.form.iter_mut().for_each(|form| form.advance(token));
    }

    fn mask(&mut self) -> Result<Option<TokenMask>, Exhausted> {
        let bound = self.form.as_mut().map_or(Ok(None), |form| form.mask())?;
        Ok(match bound {
            bound if self.left == 0 => bound,
            None => Some(self.going_on.clone()),
            Some(bound) => Some(without(&bound, &self.ends).unwrap_or(bound)),
        })
    }
}

/// None: nothing is left.
fn without(mask: &TokenMask, ends: &[TokenId]) -> Option<TokenMask> {
    let mut words = mask.words().to_vec();
    for end in ends {
        if let Some(word) = words.get_mut(*end as usize / 32) {
            *word &= !(1 << (end % 32));
        }
    }
    words.iter().any(|word| *word != 0).then(|| words.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(tokens: &[TokenId]) -> TokenMask {
        tokens.iter().copied().collect()
    }

    struct Fixed(TokenMask);

    impl Guide for Fixed {
        fn advance(&mut self, _: TokenId) {}

        fn mask(&mut self) -> Result<Option<TokenMask>, Exhausted> {
            Ok(Some(self.0.clone()))
        }
    }

    #[test]
    fn ends_are_masked_until_enough_was_said() {
        let mut guide = AtLeast::new(2, &[7, 900], &mask(&[1, 7, 40]), None);
        for _ in 0..2 {
            assert_eq!(guide.mask().unwrap(), Some(mask(&[1, 40])));
            guide.advance(1);
        }
        assert_eq!(guide.mask().unwrap(), None, "from here on it is free");
    }

    #[test]
    fn a_form_goes_on_where_it_can_and_ends_where_it_must() {
        for (allowed, expected) in [(&[1, 7][..], &[1][..]), (&[7], &[7])] {
            let form: Box<dyn Guide> = Box::new(Fixed(mask(allowed)));
            let mut guide = AtLeast::new(1, &[7], &mask(&[1, 7, 40]), Some(form));
            let words = |mask: TokenMask| (0..64).filter(|id| mask.allows(*id)).collect::<Vec<_>>();
            assert_eq!(words(guide.mask().unwrap().unwrap()), expected);
            guide.advance(1);
            assert_eq!(words(guide.mask().unwrap().unwrap()), allowed);
        }
    }
}
