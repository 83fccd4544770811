//! An answer on its way to the reader: thoughts dimmed on a terminal that has colours, the answer plain. Elsewhere only the answer goes to
//! stdout, as it is, and thoughts to stderr: who pipes the answer on wants nothing else.

use super::plain::plain;
use super::stream::Choice;
use crate::output;
use std::borrow::Cow;
use std::io::IsTerminal;

pub struct Printer {
    /// Whether stdout is one, and whether stderr is.
    terminals: (bool, bool),
    dims: bool,
    /// All of the answer so far, as the server sent it.
    pub content: String,
    thinking: bool,
    is_begun: bool,
}

impl Printer {
    pub fn new() -> Printer {
        let terminals = (std::io::stdout().is_terminal(), std::io::stderr().is_terminal());
        let dims = output::has_colours(&std::io::stdout());
        Printer { terminals, dims, content: String::new(), thinking: false, is_begun: false }
    }

    pub fn choice(&mut self, choice: Choice) {
        if let Some(thoughts) = choice.delta.thoughts() {
            self.print(thoughts, true);
        }
        if let Some(text) = choice.delta.content {
            self.print(&text, false);
            self.content.push_str(&text);
        }
        if let Some(calls) = choice.delta.tool_calls {
            self.print(&calls.to_string(), true);
        }
        if choice.finish_reason.as_deref() == Some("length") {
            self.print(" … (cut off: length)", true);
        }
        output::flush();
    }

    /// The last line is ended.
    pub fn end(&self) {
        if self.thinking {
            self.end_thoughts();
        }
        if !self.thinking || !self.terminals.0 {
            println!();
        }
    }

    /// The same of an answer that broke off, so that the error has a line of its own.
    pub fn break_off(&self) {
        if self.is_begun {
            self.end();
        }
    }

    fn end_thoughts(&self) {
        match self.terminals.0 {
            true => println!(),
            false => eprintln!(),
        }
    }

    fn print(&mut self, text: &str, thinking: bool) {
        if text.is_empty() {
            return;
        }
        if self.thinking && !thinking {
            self.end_thoughts();
        }
        (self.thinking, self.is_begun) = (thinking, true);
        match (thinking, self.terminals) {
            (true, (true, _)) if self.dims => print!("\x1b[2m{}\x1b[0m", plain(text)),
            (true, (true, _)) => print!("{}", plain(text)),
            (true, (false, terminal)) => eprint!("{}", shown(text, terminal)),
            (false, (terminal, _)) => print!("{}", shown(text, terminal)),
        }
    }
}

fn shown(text: &str, is_terminal: bool) -> Cow<'_, str> {
    if is_terminal { plain(text).into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn only_a_terminal_is_spared() {
        assert_eq!(shown("a\x1b[2J", true), "a�[2J");
        assert_eq!(shown("a\x1b[2J", false), "a\x1b[2J");
    }
}
