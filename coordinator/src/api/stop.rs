//! Stop strings: text is given out up to the first of them, which is the one that is complete first, as
//! if the text came character by character. What may be the beginning of one is held
//! back until it is known, so a stop string is found wherever the tokens cut it, and nothing that was
//! given out is ever taken back.

use std::ops::Range;

#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The stop string itself is given out, too.
    include: bool,
    held: String,
    hit: bool,
}

impl StopStrings {
    /// No stop string may be empty.
    pub fn new(stops: Vec<String>, include: bool) -> StopStrings {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        StopStrings { stops, include, held: String::new(), hit: false }
    }

    /// Whether a stop string came; nothing follows then.
    pub fn hit(&self) -> bool {
        self.hit
    }

    /// The text that can be given out now.
    pub fn push(&mut self, text: &str) -> String {
        if self.hit {
            return String::new();
        }
        self.held.push_str(text);
        let first = first_stop(&self.held, &self.stops);
        self.hit = first.is_some();
        let cut = first.map(|stop| if self.include { stop.end } else { stop.start });
        let end = cut.unwrap_or_else(|| self.held.len() - self.begun());
        let rest = self.held.split_off(end);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text ended: what was held back was no stop string after all.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        if self.hit { String::new() } else { held }
    }

    /// Length of the longest end of `held` with which a stop string begins.
    fn begun(&self) -> usize {
        let begun = |stop: &String| {
            let ends = stop.char_indices().map(|(end, _)| end).rev();
            ends.filter(|&end| end <= self.held.len()).find(|&end| self.held.ends_with(&stop[..end]))
        };
        self.stops.iter().filter_map(begun).max().unwrap_or(0)
    }
}

/// The stop string that is complete first; the longest, where several are.
fn first_stop(text: &str, stops: &[String]) -> Option<Range<usize>> {
    let found = |stop: &String| text.find(stop.as_str()).map(|start| (start + stop.len(), start));
    stops.iter().filter_map(found).min().map(|(end, start)| start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However the text comes in pieces, what is given out is the text up to the first stop string.
        #[test]
        fn pieces_do_not_matter(
            pieces in prop::collection::vec("[abä]{0,4}", 0..8),
            stops in prop::collection::vec("[abä]{1,4}", 0..4),
            include: bool,
        ) {
            let mut matcher = StopStrings::new(stops.clone(), include);
            let mut given: String = pieces.iter().map(|piece| matcher.push(piece)).collect();
            given.push_str(&matcher.finish());
            let text = pieces.concat();
            let first = first_stop(&text, &stops);
            prop_assert_eq!(matcher.hit(), first.is_some());
            let cut = first.map(|stop| if include { stop.end } else { stop.start });
            prop_assert_eq!(given, &text[..cut.unwrap_or(text.len())]);
        }
    }

    #[test]
    fn a_false_alarm_is_given_out_late_but_whole() {
        let mut stop = StopStrings::new(vec!["END".to_owned()], false);
        assert_eq!(stop.push("the E"), "the ");
        assert_eq!(stop.push("N"), "");
        assert_eq!(stop.push("emy"), "ENemy");
        assert_eq!(stop.push(" EN"), " ");
        assert_eq!(stop.finish(), "EN");
        assert!(!stop.hit());
    }
}
