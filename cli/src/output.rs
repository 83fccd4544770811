//! What goes to stdout, by `println!` and `print!` as everywhere; but where the other end was closed, as by `head`, the
//! process ends there, quietly. The standard library's panic, since Rust has SIGPIPE ignored before `main`.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

/// What a shell says of a program that SIGPIPE ended.
const BROKEN_PIPE: i32 = 128 + 13;

macro_rules! print {
    ($($words:tt)*) => { $crate::output::write(format_args!($($words)*)) };
}

macro_rules! println {
    () => { $crate::output::write(format_args!("\n")) };
    ($($words:tt)*) => { $crate::output::write_line(format_args!($($words)*)) };
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

/// # Panics
/// If stdout is there and cannot be written, as the standard library's do.
fn quiet_end(written: io::Result<()>) {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(BROKEN_PIPE),
        written => written.expect("stdout can be written"),
    }
}
