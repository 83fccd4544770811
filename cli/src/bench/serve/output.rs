//! Where the report goes.

use super::ServeArgs;
use anyhow::{Context, Result};
use flotilla_load::report::{Report, csv, html};
use std::fs::{self, OpenOptions};
use std::path::Path;

const HINT: &str = "hint: is the folder there, and may this user write in it?";

/// Whether all can be written that is asked for: said before the run, not after an hour of it. What stands in a file stays until
/// there is something to put in its place.
pub fn check(args: &ServeArgs) -> Result<()> {
    let outcome = &args.outcome;
    let files = [&outcome.csv, &outcome.html, &outcome.json].into_iter().flatten();
    files.filter(|path| !is_stdout(path)).try_for_each(|path| check_file(path))
}

fn check_file(path: &Path) -> Result<()> {
    let before = path.metadata();
    // To open a pipe is to be its writer, and to close it its end.
    if before.as_ref().is_ok_and(|file| !file.is_file() && !file.is_dir()) {
        return Ok(());
    }
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.with_context(|| format!("cannot write {}\n{HINT}", path.display()))?;
    if before.is_err() {
        let _ = fs::remove_file(path);
    }
    Ok(())
}

/// The table first, which needs nothing that could be missing; a file that fails keeps none of the others from being written.
pub fn write(args: &ServeArgs, report: &Report) -> Result<()> {
    let outcome = &args.outcome;
    let json = serde_json::to_string(report)?;
    match &outcome.json {
        Some(path) if is_stdout(path) => println!("{json}"),
        _ => print!("{report}"),
    }
    let json_file = outcome.json.as_ref().filter(|path| !is_stdout(path));
    let written = [
        outcome.csv.as_ref().map(|path| file(path, &csv(report))),
        outcome.html.as_ref().map(|path| file(path, &html(report))),
        json_file.map(|path| file(path, &json)),
    ];
    written.into_iter().flatten().collect()
}

fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}\n{HINT}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_whether_a_file_can_be_written_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        fs::write(&old, "of yesterday").unwrap();
        for path in [&new, &old] {
            check_file(path).unwrap();
        }
        assert_eq!((new.exists(), fs::read_to_string(&old).unwrap().as_str()), (false, "of yesterday"));
        for none in [folder.path().join("none/x.csv"), folder.path().to_owned()] {
            let error = format!("{:#}", check_file(&none).unwrap_err());
            assert!(error.contains("cannot write") && error.contains("hint: "), "{error}");
        }
    }
}
