//! Words of models and servers, made fit for a terminal: it obeys more than letters.

/// Lines and tabs stay; of every other control character one sees that it was there.
pub fn plain(text: &str) -> String {
    let is_obeyed = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
    text.chars().map(|letter| if is_obeyed(letter) { char::REPLACEMENT_CHARACTER } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        assert_eq!(plain("a\n\tb é 漢"), "a\n\tb é 漢");
        assert_eq!(plain("\x1b]0;owned\x07\x1b[2Jclean"), "�]0;owned��[2Jclean");
        assert_eq!(plain("\u{9b}2J\r\x08\x7f"), "�2J���");
    }
}
