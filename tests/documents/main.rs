//! Every command in the documents works. Those of `flotilla` are taken by the program that was built: the cheap ones are
//! run, servers are checked with `--check`, questions are asked of a server, and of the rest the flags are read. Other
//! programs are named in a list; what they are told of this repository must be there.

#[path = "../support/mod.rs"]
mod support;

mod command;

use command::{Command, commands_in, commands_of, spans_of};
use std::fs;
use std::path::{Path, PathBuf};
use support::client::Client;
use support::program::{Ran, flotilla, run};
use support::repository;
use support::server::Up;

/// And all of docs/.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "CONTRIBUTING.md",
    "deploy/README.md",
    "demo/README.md",
    "tests/README.md",
    "tests/device/README.md",
];
/// Programs that are not ours. `tests/deploy` runs those of helm and kubectl as far as they go without a cluster.
const OTHERS: [&str; 13] = [
    "cargo",
    "curl",
    "docker",
    "export",
    "helm",
    "journalctl",
    "kubectl",
    "pip",
    "cd",
    "python",
    "sed",
    "sudo",
    "xdg-open",
];
/// Cheap, and true of every machine.
const RUN: [&str; 4] = ["plan", "key", "certs", "doctor"];
/// They begin, serve, and end when they are told.
const SERVERS: [&str; 3] = ["up", "coordinator", "worker"];

fn documents() -> Vec<(String, PathBuf)> {
    let pages =
        fs::read_dir(repository("docs")).expect("docs/ is there").map(|file| file.expect("it can be read"));
    let pages = pages.map(|file| format!("docs/{}", file.file_name().to_string_lossy()));
    let mut names: Vec<String> = pages.filter(|name| name.ends_with(".md")).collect();
    names.extend(DOCUMENTS.map(str::to_owned));
    names.sort();
    names.into_iter().map(|name| (name.clone(), repository(&name))).collect()
}

/// A folder in which commands find what they name.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder can be made");
    for name in ["demo", "deploy", "tests"] {
        std::os::unix::fs::symlink(repository(name), dir.path().join(name)).expect("a link can be made");
    }
    std::os::unix::fs::symlink(repository("demo/model"), dir.path().join("DIR")).expect("a link can be made");
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate can be made");
    fs::write(dir.path().join("cert.pem"), made.cert.pem()).expect("it can be written");
    fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).expect("it can be written");
    dir
}

async fn run_in(dir: &Path, args: &[String]) -> Ran {
    let mut command = flotilla(args);
    // A secret, as the documents say to set it.
    command.current_dir(dir).env("FLOTILLA_JOIN_TOKEN", support::server::TOKEN);
    let output = tokio::time::timeout(support::program::PATIENCE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{args:?} does not end")).expect("it can be started");
    let text = |bytes| String::from_utf8(bytes).expect("it is UTF-8");
    Ran { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Nothing, or what is wrong with a command of `flotilla`.
async fn complaint(dir: &Path, command: &Command, args: &[String]) -> Option<String> {
    let with = |flag: &str| [args, &[flag.to_owned()]].concat();
    // Flags before it are read, names and values.
    let mut tries = vec![with("--help")];
    let sub = args.first().map_or("", String::as_str);
    if SERVERS.contains(&sub) {
        tries.push(if args.iter().any(|arg| arg == "--check") { args.to_vec() } else { with("--check") });
    } else if RUN.contains(&sub) {
        tries.push(args.to_vec());
    }
    for args in tries {
        let ran = run_in(dir, &args).await;
        if ran.status != Some(0) {
            return Some(format!("{}: {args:?}: {}", command.place, ran.stderr));
        }
        if let Some(file) = &command.appends_to {
            fs::write(dir.join(file), &ran.stdout).expect("it can be written");
        }
    }
    None
}

async fn complaints(name: &str, commands: &[Command]) -> (usize, Vec<String>) {
    let (dir, mut count, mut wrong) = (place(), 0, Vec::new());
    for command in commands {
        if let Some(args) = command.flotilla() {
            count += 1;
            wrong.extend(complaint(dir.path(), command, &args).await);
        } else {
            wrong.extend(unknown(name, command));
        }
    }
    (count, wrong)
}

/// A program that nobody listed, or a file of the repository that is not there.
fn unknown(name: &str, command: &Command) -> Option<String> {
    let is_setting =
        |word: &&String| word.split_once('=').is_some_and(|(name, _)| name.chars().all(is_upper));
    let words: Vec<&String> = command.words.iter().skip_while(is_setting).collect();
    let program = words.first()?;
    let folder = repository(name).parent().expect("a document is in a folder").to_owned();
    let known = OTHERS.contains(&program.as_str())
        || program.as_str() == "./run.sh"
        || program.contains("CARGO_TARGET_DIR")
        || [repository(program), folder.join(program.as_str())].iter().any(|path| path.is_file());
    let cargo = words.windows(2).filter(|pair| program.as_str() == "cargo" && pair[0] == "-p");
    let missing = cargo.map(|pair| pair[1]).find(|package| !is_crate(package));
    match missing {
        Some(package) => Some(format!("{}: no crate is called {package}", command.place)),
        None => (!known).then(|| format!("{}: what is {program}? {:?}", command.place, command.words)),
    }
}

fn is_upper(letter: char) -> bool {
    letter.is_ascii_uppercase() || letter == '_'
}

fn is_crate(name: &str) -> bool {
    name.strip_prefix("flotilla-").is_some_and(|folder| repository(folder).join("Cargo.toml").is_file())
}

#[tokio::test]
async fn commands_of_the_documents_work() {
    let (mut count, mut wrong) = (0, Vec::new());
    for (name, path) in documents() {
        let (more, complaints) = complaints(&name, &commands_of(&path, &name)).await;
        count += more;
        wrong.extend(complaints);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 40, "only {count} commands were found");
}

/// Flags in running text belong to their command.
#[tokio::test]
async fn flags_that_are_spoken_of_exist() {
    let mut wrong = Vec::new();
    for (name, path) in documents() {
        for span in spans_of(&path, &name) {
            let words = span.words[1..].iter().take_while(|word| !word.starts_with('-') && *word != "…");
            // What is no name of a command is an argument of the one before.
            let mut names: Vec<&String> = words.take(2).collect();
            let flag = "--help".to_owned();
            let mut help = run([&names[..], &[&flag]].concat()).await;
            while help.status != Some(0) && names.pop().is_some() {
                help = run([&names[..], &[&flag]].concat()).await;
            }
            let flags = span.words.iter().filter(|word| word.starts_with("--") && !word.contains('…'));
            let flags =
                flags.filter(|flag| !help.stdout.contains(flag.split('=').next().unwrap_or_default()));
            wrong.extend(flags.map(|flag| format!("{}: {names:?} has no {flag}", span.place)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_wrong_command_in_a_document_is_found() {
    let cases = [
        ("flotilla up --worker 2", "unexpected argument"),
        ("cargo run --release -- sail", "unrecognized subcommand"),
        ("flotilla up --model NOT-THERE", "NOT-THERE"),
        ("flotilla bench serve --chaos never", "invalid value"),
        ("flotilla plan --ranks 65", "1 to 64 ranks"),
        ("flotilla coordinator --model DIR --step-tokens 10", "--step-tokens is 10, below --sequences 64"),
        ("cargo test -p flotilla-nothing", "no crate"),
        ("WORKER_ARGS=--thread 8", "unexpected argument"),
        ("frigate up", "what is frigate"),
        ("tests/nothing.sh", "what is tests/nothing.sh"),
    ];
    for (line, words) in cases {
        let found = commands_in(&format!("```sh\n{line}\n```\n"), "README.md");
        let (_, wrong) = complaints("README.md", &found).await;
        assert!(wrong.len() == 1 && wrong[0].contains(words), "{line}: {wrong:?}");
    }
}

/// The address, if this is a question to our API.
fn asked_by_curl(command: &Command) -> Option<&String> {
    let [program, words @ ..] = command.words.as_slice() else { return None };
    let is_ours = |word: &&String| word.contains("/v1/") || word.ends_with("/health");
    words.iter().find(is_ours).filter(|_| program == "curl")
}

/// What is asked with curl and with `flotilla chat`, of the demo model.
#[tokio::test]
async fn questions_of_the_documents_are_answered() {
    let up = Up::start(&repository("demo/model"), &["--kv-tokens", "2048"]).await;
    let (client, mut asked) = (Client::new(&up.url), 0);
    for (name, path) in documents() {
        for command in commands_of(&path, &name) {
            let place = &command.place;
            if let Some(args) = command.flotilla() {
                // Of a server with a certificate nobody has it here.
                if args.first().is_some_and(|sub| sub == "chat") && !args.iter().any(|arg| arg == "--ca") {
                    let args = args.into_iter().filter(|arg| arg != "--url" && !arg.starts_with("http"));
                    let args: Vec<String> = args.chain(["--url".into(), up.url.clone()]).collect();
                    run(&args).await.expect_status(0);
                    asked += 1;
                }
                continue;
            }
            let Some(url) = asked_by_curl(&command) else { continue };
            let at = url.find("/v1").or(url.rfind('/')).expect("it was found by it");
            let body = command.words.iter().skip_while(|word| *word != "-d").nth(1);
            let (status, answer) = match body {
                Some(body) => client.post_text(&url[at..], body.clone()).await,
                None => client.get(&url[at..]).await,
            };
            assert_eq!(status, 200, "{place}: {answer}");
            asked += 1;
        }
    }
    assert!(asked >= 5, "only {asked} questions were found");
}
