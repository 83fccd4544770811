//! What goes to stdout and stderr, by `println!` and `eprintln!` as everywhere; but where the other end of stdout was
//! closed, as by `head`, the process ends there, quietly, and where it cannot be written, as to a disk that is full, with an
//! error. Of a stderr that is gone nobody reads it. The standard library's panic, since Rust has SIGPIPE ignored before
//! `main`.

use crate::log;
use std::env;
use std::ffi::OsString;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, IsTerminal, Write};

/// What a shell says of a program that SIGPIPE ended.
const BROKEN_PIPE: i32 = 128 + 13;

macro_rules! print {
    ($($words:tt)*) => { $crate::output::write(format_args!($($words)*)) };
}

macro_rules! println {
    () => { $crate::output::write(format_args!("\n")) };
    ($($words:tt)*) => { $crate::output::write_line(format_args!($($words)*)) };
}

macro_rules! eprint {
    ($($words:tt)*) => { $crate::output::tell(format_args!($($words)*)) };
}

macro_rules! eprintln {
    () => { $crate::output::tell(format_args!("\n")) };
    ($($words:tt)*) => { $crate::output::tell(format_args!("{}\n", format_args!($($words)*))) };
}

pub fn write(words: Arguments<'_>) {
    quiet_end(io::stdout().lock().write_fmt(words));
}

pub fn write_line(words: Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    quiet_end(stdout.write_fmt(words).and_then(|()| stdout.write_all(b"\n")));
}

/// What was printed is there, whether or not its line has ended.
pub fn flush() {
    quiet_end(io::stdout().flush());
}

fn quiet_end(written: io::Result<()>) {
    let Err(error) = written else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(BROKEN_PIPE);
    }
    log::fail(format_args!("cannot write to stdout: {error}"));
    std::process::exit(1);
}

/// To stderr, in one piece: other processes have the same one, and their words may not come into the middle of a line.
pub fn tell(words: Arguments<'_>) {
    // Whoever has closed it does not want to hear it.
    let _ = io::stderr().write_all(words.to_string().as_bytes());
}

/// Whether words there may have colours.
pub fn has_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && are_wanted(env::var_os("NO_COLOR"), env::var_os("TERM"))
}

/// By a terminal that has them, and somebody who has not said otherwise (no-color.org).
fn are_wanted(no_color: Option<OsString>, terminal: Option<OsString>) -> bool {
    no_color.is_none_or(|value| value.is_empty()) && terminal.is_none_or(|terminal| terminal != "dumb")
}

#[cfg(test)]
mod tests {
    use super::are_wanted;

    #[test]
    fn colours_are_for_those_who_have_and_want_them() {
        let wanted = |no_color: Option<&str>, term: Option<&str>| {
            are_wanted(no_color.map(Into::into), term.map(Into::into))
        };
        assert!(wanted(None, Some("xterm")) && wanted(Some(""), Some("xterm")) && wanted(None, None));
        assert!(!wanted(Some("1"), Some("xterm")) && !wanted(None, Some("dumb")));
    }
}
