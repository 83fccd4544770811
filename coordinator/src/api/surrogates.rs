//! Half of a character, which clients make where they cut a text in UTF-16 between the two: `"\ud83d"`. JSON's
//! grammar has a place for it, and UTF-8 has none.

/// An escape, `\ud83d`.
const ESCAPE_BYTES: usize = 6;

/// Puts the character for what is no character in place of each escape of half of one; whether there were any. No
/// byte moves, so that complaints name the places that the client knows.
pub fn mend(json: &mut [u8]) -> bool {
    let (mut at, mut mended) = (0, false);
    while at < json.len() {
        at += match (json[at], unit(&json[at..])) {
            (b'\\', Some(0xD800..0xDC00)) if is_low(&json[at + ESCAPE_BYTES..]) => 2 * ESCAPE_BYTES,
            (b'\\', Some(0xD800..0xE000)) => {
                json[at..at + ESCAPE_BYTES].copy_from_slice(b"\\ufffd");
                mended = true;
                ESCAPE_BYTES
            }
            // Whatever is escaped is passed over with its backslash: it may be one itself.
            (b'\\', _) => 2,
            _ => 1,
        };
    }
    mended
}

/// The number of an escape that stands here.
fn unit(json: &[u8]) -> Option<u16> {
    let digits = json.strip_prefix(b"\\u")?.first_chunk::<4>()?;
    let hex = digits.iter().all(u8::is_ascii_hexdigit);
    std::str::from_utf8(digits).ok().filter(|_| hex).and_then(|digits| u16::from_str_radix(digits, 16).ok())
}

fn is_low(json: &[u8]) -> bool {
    unit(json).is_some_and(|unit| (0xDC00..0xE000).contains(&unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_mended_and_nothing_else() {
        for (json, expected) in [
            (r#""a\ud83d""#, Some(r#""a\ufffd""#)),
            (r#""\uDE00 \ud83d\ud83d\ude00""#, Some(r#""\ufffd \ufffd\ud83d\ude00""#)),
            (r#""\ud83d\n\\ud83d""#, Some(r#""\ufffd\n\\ud83d""#)),
            (r#""\ud83d\u0041""#, Some(r#""\ufffd\u0041""#)),
            (r#""\ud83d\ude00 \u00e9 \\udead""#, None),
            (r#""\ud83"#, None),
            (r#""\ud8+3""#, None),
            ("\\", None),
        ] {
            let mut bytes = json.as_bytes().to_vec();
            let mended = mend(&mut bytes);
            assert_eq!(mended.then(|| String::from_utf8(bytes).unwrap()).as_deref(), expected, "{json}");
        }
    }
}
