//! Where words go that nobody takes, and what is logged.

use crate::support::program::flotilla;
use std::fs::File;
use std::process::Stdio;

/// As `| head` does it, once it has seen enough. It panicked.
#[tokio::test]
async fn who_closes_its_output_ends_a_command_quietly() {
    for args in [&["plan", "--ranks", "64"][..], &["plan", "--devices", "64xt4"], &["key", "ann"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = flotilla(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let ended = ended.wait_with_output().await.unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(128 + 13), "{args:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("Broken pipe"), "{args:?}: {said}");
    }
}

/// It panicked.
#[tokio::test]
async fn a_disk_that_is_full_is_an_error() {
    for args in [&["plan"][..], &["key", "ann"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let ended = flotilla(args).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let output = ended.wait_with_output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.starts_with("error: cannot write to stdout: No space left"), "{args:?}: {said}");
        assert!(!said.contains("flotilla-"), "a key is shown that no file has: {said}");
    }
}

/// As `2>&1 | head -1` closes it. The hint behind the error panicked.
#[tokio::test]
async fn who_closes_its_errors_changes_no_status() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = flotilla(["up", "-c", "5"]).stderr(writer).status().await.unwrap();
    assert_eq!(status.code(), Some(2));
}

/// The default was taken, without a word.
#[tokio::test]
async fn a_level_that_is_none_stops_the_start() {
    for (loud, status) in [("flotilla=loud", Some(1)), ("debug", Some(0)), ("", Some(0))] {
        let output = flotilla(["plan"]).env("FLOTILLA_LOG", loud).output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), status, "{loud}: {said}");
        let words = "error: FLOTILLA_LOG is \"flotilla=loud\": ";
        assert!(status == Some(0) || said.starts_with(words) && said.contains("\nhint: "), "{said}");
    }
}
