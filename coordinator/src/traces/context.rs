//! Who a span is, and whose part: W3C's Trace Context (`traceparent`, <https://www.w3.org/TR/trace-context/>).

use std::fmt;

/// Of 16 bytes, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(u128);

/// Of 8 bytes, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(u64);

/// A span that is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: TraceId,
    pub span: SpanId,
}

/// What a client's header says of the span that it asks from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    pub trace: TraceId,
    pub span: SpanId,
    pub is_sampled: bool,
    /// `tracestate`, as it came.
    pub state: String,
}

/// Longer ones are not passed on.
const STATE_BYTES_MAX: usize = 512;

impl Context {
    /// The first of a trace.
    pub fn new() -> Context {
        Context { trace: TraceId(u128::from(random()) << 64 | u128::from(random())), span: SpanId::new() }
    }

    /// Another of this trace.
    pub fn below(trace: TraceId) -> Context {
        Context { trace, span: SpanId::new() }
    }
}

impl Default for Context {
    fn default() -> Context {
        Context::new()
    }
}

impl TraceId {
    /// Whether it is one of this part of all: the same wherever it is asked, as OpenTelemetry's sampler decides.
    pub fn is_among(self, ratio: f64) -> bool {
        // 63 bits, all of which are by chance.
        let place = (self.0 as u64 >> 1) as f64 / (1u64 << 63) as f64;
        place < ratio
    }
}

impl SpanId {
    fn new() -> SpanId {
        SpanId(random())
    }
}

/// Not zero.
fn random() -> u64 {
    let chance = getrandom::u64().expect("the system gives random bytes");
    chance.max(1)
}

impl Parent {
    /// `00-TRACE-SPAN-FLAGS`; none of what is malformed. A later version may say more behind it.
    pub fn read(traceparent: &str, tracestate: &str) -> Option<Parent> {
        let mut parts = traceparent.trim().split('-');
        let (version, trace) = (hex::<u8>(parts.next()?, 2)?, hex::<u128>(parts.next()?, 32)?);
        let (span, flags) = (hex::<u64>(parts.next()?, 16)?, hex::<u8>(parts.next()?, 2)?);
        let is_known = version == 0 && parts.next().is_none() || (1..0xff).contains(&version);
        let state = if tracestate.len() <= STATE_BYTES_MAX { tracestate.to_owned() } else { String::new() };
        let parent = Parent { trace: TraceId(trace), span: SpanId(span), is_sampled: flags & 1 == 1, state };
        (is_known && trace != 0 && span != 0).then_some(parent)
    }
}

/// Lower case digits, as many as are due.
fn hex<T: TryFrom<u128>>(text: &str, digits: usize) -> Option<T> {
    let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    let fits = text.len() == digits && text.bytes().all(is_hex);
    fits.then(|| u128::from_str_radix(text, 16).ok()?.try_into().ok()).flatten()
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn a_traceparent_is_read_as_it_is_written() {
        let parent = Parent::read(&format!("00-{TRACE}-{SPAN}-01"), "a=b").unwrap();
        assert_eq!((parent.trace.to_string(), parent.span.to_string()), (TRACE.into(), SPAN.into()));
        assert!(parent.is_sampled && parent.state == "a=b");
        assert!(!Parent::read(&format!("00-{TRACE}-{SPAN}-00"), "").unwrap().is_sampled);
        assert!(
            Parent::read(&format!("cc-{TRACE}-{SPAN}-03-more"), "").unwrap().is_sampled,
            "a later version"
        );
    }

    #[test]
    fn what_is_malformed_is_no_parent() {
        let zero = "0".repeat(32);
        for text in [
            String::new(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{zero}-{SPAN}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}é-{SPAN}-01", &TRACE[..30]),
            format!("00-+{}-{SPAN}-01", &TRACE[..31]),
        ] {
            assert_eq!(Parent::read(&text, ""), None, "{text}");
        }
    }

    #[test]
    fn a_ratio_takes_its_part_of_all() {
        let among = |ratio| (0..4000).filter(|_| Context::new().trace.is_among(ratio)).count();
        assert_eq!((among(0.0), among(1.0)), (0, 4000));
        // Ten deviations to either side.
        assert!((700..1300).contains(&among(0.25)));
    }
}
