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
        let lines = text.lines().take(rows.saturating_sub(1));
        lines.for_each(|line| {
            page.extend(line.chars().take(columns));
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
