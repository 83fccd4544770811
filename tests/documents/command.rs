//! The commands of a document: the lines of its `sh` blocks and those indented by four spaces, as a shell would take them
//! apart. What stands for something (`DIR`, `…`) is given something.

use std::fs;
use std::path::Path;

/// A line of a document that is to be typed.
#[derive(Debug)]
pub struct Command {
    /// Document and line, for people.
    pub place: String,
    /// Without comments and what a shell does with it.
    pub words: Vec<String>,
    /// Where `>>` sends what it prints.
    pub appends_to: Option<String>,
}

impl Command {
    fn new(place: String, line: &str) -> Option<Command> {
        let mut words = words_of(line);
        words.retain(|word| word != "&");
        let appends_to = words.iter().position(|word| word == ">>").map(|at| {
            let to = words.remove(at + 1);
            words.remove(at);
            to
        });
        (!words.is_empty()).then_some(Command { place, words, appends_to })
    }

    /// What `flotilla` is told, if it is a command of ours.
    pub fn flotilla(&self) -> Option<Vec<String>> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        // As the systemd units give it to them.
        if let Some((program, flag)) = words[0].split_once("_ARGS=") {
            let rest = self.words[1..].iter().cloned();
            return Some([program.to_lowercase(), flag.to_owned()].into_iter().chain(rest).collect());
        }
        let args = match words.as_slice() {
            ["flotilla", args @ ..] | ["cargo", "run", "--release", "--", args @ ..] => args,
            _ => return None,
        };
        let args = args.iter().filter(|word| **word != "…");
        // A folder that another command of the document makes, of gigabytes.
        Some(args.map(|word| if *word == "/tmp/two-layers" { "DIR" } else { *word }.to_owned()).collect())
    }
}

/// All commands of a document, in its order.
pub fn commands_of(path: &Path, name: &str) -> Vec<Command> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"));
    commands_in(&text, name)
}

pub fn commands_in(text: &str, name: &str) -> Vec<Command> {
    let (mut found, mut fence, mut begun) = (Vec::new(), None, String::new());
    // An indented block begins behind an empty line; else it is a list that goes on.
    let mut may_begin = true;
    for (number, line) in text.lines().enumerate() {
        if let Some(kind) = line.strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(kind) };
            continue;
        }
        let is_command = match fence {
            Some(kind) => kind == "sh",
            None => may_begin && line.starts_with("    "),
        };
        may_begin = line.is_empty() || fence.is_none() && is_command;
        if !is_command {
            continue;
        }
        begun += line.trim_start();
        if let Some(first) = begun.strip_suffix('\\') {
            begun = first.to_owned();
            continue;
        }
        found.extend(Command::new(format!("{name}:{}", number + 1), &begun));
        begun.clear();
    }
    found
}

/// `flotilla …` in running text: what stands between backticks, taken apart.
pub fn spans_of(path: &Path, name: &str) -> Vec<Command> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut in_block = false;
    let lines = text.lines().enumerate().filter(|(_, line)| {
        let is_fence = line.starts_with("```");
        in_block ^= is_fence;
        !in_block && !is_fence
    });
    let spans = lines.flat_map(|(number, line)| {
        let spans = line.split('`').skip(1).step_by(2).filter(|span| span.starts_with("flotilla "));
        spans.filter_map(move |span| Command::new(format!("{name}:{}", number + 1), span))
    });
    spans.collect()
}

/// Quotes hold words together, and `#` begins a comment.
fn words_of(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[test]
fn a_line_is_taken_apart_as_a_shell_does() {
    let line = "flotilla chat \"What is 12 + 30?\" --url http://a/#b    # ask once";
    assert_eq!(words_of(line), ["flotilla", "chat", "What is 12 + 30?", "--url", "http://a/#b"]);
    assert_eq!(words_of("# nothing"), Vec::<String>::new());
    assert_eq!(words_of("--extra '{\"a\": 0}' ''"), ["--extra", "{\"a\": 0}", ""]);
    let text = "a\n    b\n```sh\nflotilla up \\\n  --workers 2 &\n```\n\n    flotilla top\n```yaml\nflotilla no\n```\n";
    let found: Vec<_> = commands_in(text, "x").into_iter().map(|found| (found.place, found.words)).collect();
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let expected = [("x:5", "flotilla up --workers 2"), ("x:8", "flotilla top")];
    assert_eq!(found, expected.map(|(place, line)| (place.to_owned(), words(line))));
    let key = &commands_in("```sh\nflotilla key a >> keys.toml\n```", "x")[0];
    assert_eq!((key.appends_to.as_deref(), key.words.len()), (Some("keys.toml"), 3));
}
