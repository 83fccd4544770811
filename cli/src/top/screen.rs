//! The terminal: another page of it while the fleet is shown, keys as they are pressed, and all as it was at the end.
//! What is not ANSI is left to stty, which every system has.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use tokio::sync::mpsc;

const OPEN: &str = "\x1b[?1049h\x1b[?25l";
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";
/// As wide as the names that the lines of a frame begin with.
const INDENT: &str = "          ";
/// Where the size is not known.
const ROWS_COLUMNS: (usize, usize) = (24, 80);

pub struct Screen {
    /// What stty calls the state before.
    before: Option<String>,
    left: mpsc::UnboundedReceiver<()>,
}

impl Screen {
    pub fn open() -> Screen {
        let before = stty(&["-g"]);
        // Without it q needs Enter behind it.
        stty(&["-icanon", "-echo"]);
        print(OPEN);
        let (leave, left) = mpsc::unbounded_channel();
        // It ends with the process: nothing interrupts a read.
        std::thread::spawn(move || {
            let keys = std::io::stdin().lock().bytes().map_while(Result::ok);
            keys.filter(|key| matches!(key, b'q' | b'Q')).for_each(|_| _ = leave.send(()));
            std::mem::forget(leave);
        });
        Screen { before, left }
    }

    /// As much of it as there is room for.
    pub fn show(&mut self, text: &str) {
        let (rows, columns) = size();
        let mut page = HOME.to_owned();
        let lines = text.lines().flat_map(|line| folded(line, columns)).take(rows.saturating_sub(1));
        lines.for_each(|line| {
            page += &line;
            page += CLEAR_LINE;
            page += "\r\n";
        });
        page += CLEAR_BELOW;
        print(&page);
    }

    /// Resolves when the user wants to leave.
    pub async fn left(&mut self) {
        if self.left.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print(CLOSE);
        if let Some(before) = &self.before {
            stty(&[before]);
        }
    }
}

/// A line as several where it is too long for the terminal. What cannot be broken is cut.
fn folded(line: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = line.to_owned();
    while let Some(at) = break_at(&rest, columns) {
        lines.push(rest[..at].trim_end().to_owned());
        rest = format!("{INDENT}{}", rest[at..].trim_start());
    }
    lines.push(rest.chars().take(columns).collect());
    lines
}

/// Where a line that is too long is broken: between two of its values, or else between words.
fn break_at(line: &str, columns: usize) -> Option<usize> {
    let begin = |chars| line.char_indices().nth(chars).map(|(end, _)| &line[..end]);
    begin(columns)?;
    let last = |gap: &str| {
        let at = begin(columns + gap.len()).unwrap_or(line).rfind(gap)?;
        (!line[..at].trim().is_empty()).then_some(at)
    };
    last("  ").or_else(|| last(" "))
}

fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    // Of a terminal that is gone nobody sees it.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Of the terminal.
pub fn columns() -> usize {
    size().1
}

fn size() -> (usize, usize) {
    let size = stty(&["size"]);
    let size = size.as_deref().and_then(|size| size.trim().split_once(' '));
    let size = size.and_then(|(rows, columns)| Some((rows.parse().ok()?, columns.parse().ok()?)));
    size.filter(|(rows, columns)| *rows > 0 && *columns > 0).unwrap_or(ROWS_COLUMNS)
}

/// What it says, if it could do it.
fn stty(args: &[&str]) -> Option<String> {
    let done = Command::new("stty").args(args).stdin(Stdio::inherit()).stderr(Stdio::null()).output().ok()?;
    let said = String::from_utf8(done.stdout).ok()?;
    done.status.success().then(|| said.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_goes_on_below() {
        let line = "groups    1 of 1 replicas serve  ended 0  formed again 0  workers without a group 7";
        for columns in [83, 82, 80, 60, 40, 24, 15] {
            let lines = folded(line, columns);
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{columns}: {lines:#?}");
            let words: Vec<&str> = lines.iter().flat_map(|line| line.split_whitespace()).collect();
            assert!(
                columns < 24 || words == line.split_whitespace().collect::<Vec<_>>(),
                "{columns}: {lines:#?}"
            );
        }
        assert_eq!(folded(line, 83), [line]);
        assert_eq!(folded(line, 82), [&line[..56], "          workers without a group 7"]);
        assert_eq!(folded("", 80), [""]);
        assert_eq!(folded("ééé  ééé", 3), ["ééé", "   "]);
        assert_eq!(folded("word", 0), [""]);
    }
}
