//! Server-sent events out of bytes that may be cut anywhere, by the WHATWG's rules.

/// What a stream brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Data(String),
    /// A line that no event stream has.
    Stray(String),
}

#[derive(Debug, Default)]
pub struct Events {
    bytes: Vec<u8>,
    /// Up to here no end of a line was found.
    searched: usize,
    data: Vec<String>,
}

impl Events {
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next event that is whole.
    pub fn take(&mut self) -> Option<Event> {
        while let Some(line) = self.line() {
            if line.is_empty() {
                if !self.data.is_empty() {
                    return Some(Event::Data(std::mem::take(&mut self.data).join("\n")));
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => self.data.push(value.to_owned()),
                // A comment, or a field that says nothing of the answer.
                "" | "event" | "id" | "retry" => {}
                _ => return Some(Event::Stray(line)),
            }
        }
        None
    }

    /// What stands at the end without an empty line behind it. Browsers drop it; here it counts, so that it is seen.
    pub fn rest(&mut self) -> Vec<Event> {
        self.push(b"\n\n");
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Up to LF or CR LF. A lone CR, which the rules allow too, no server sends.
    fn line(&mut self) -> Option<String> {
        let Some(end) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            return None;
        };
        let line: Vec<u8> = self.bytes.drain(..=self.searched + end).collect();
        self.searched = 0;
        let line = String::from_utf8_lossy(&line);
        let line = line.strip_suffix('\n').unwrap_or(&line);
        Some(line.strip_suffix('\r').unwrap_or(line).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": keep-alive\n\ndata: {\"a\":1}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\nnonsense\ndata: é\n\ndata: last";

    fn all(parts: impl Iterator<Item = Vec<u8>>) -> Vec<Event> {
        let mut events = Events::default();
        let mut seen = Vec::new();
        for part in parts {
            events.push(&part);
            seen.extend(std::iter::from_fn(|| events.take()));
        }
        seen.extend(events.rest());
        seen
    }

    #[test]
    fn where_bytes_are_cut_makes_no_difference() {
        let data = |text: &str| Event::Data(text.into());
        let expected =
            [data("{\"a\":1}"), data("two\nlines"), Event::Stray("nonsense".into()), data("é"), data("last")];
        for size in 1..STREAM.len() {
            assert_eq!(all(STREAM.as_bytes().chunks(size).map(<[u8]>::to_vec)), expected, "parts of {size}");
        }
    }
}
