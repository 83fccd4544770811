//! Where the report goes.

use super::ServeArgs;
use anyhow::{Context, Result};
use flotilla_load::report::{Report, csv, html};
use std::fs;
use std::path::Path;

pub fn write(args: &ServeArgs, report: &Report) -> Result<()> {
    let outcome = &args.outcome;
    if let Some(path) = &outcome.csv {
        file(path, &csv(report))?;
    }
    if let Some(path) = &outcome.html {
        file(path, &html(report))?;
    }
    let json =
        outcome.json.as_ref().map(|path| Ok::<_, anyhow::Error>((path, serde_json::to_string(report)?)));
    match json.transpose()? {
        Some((path, json)) if path.as_os_str() == "-" => println!("{json}"),
        Some((path, json)) => {
            file(path, &json)?;
            print!("{report}");
        }
        None => print!("{report}"),
    }
    Ok(())
}

fn file(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
