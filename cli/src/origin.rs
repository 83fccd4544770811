//! Where a model is that is asked for by `--model`: a folder, a snapshot in Hugging Face's cache, or a web server.

use crate::model::name_of;
use anyhow::{Context, Result, bail, ensure};
use flotilla_shared::ModelSpec;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Whose models the published names are.
const PUBLISHER: &str = "openai";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Folder {
        dir: PathBuf,
        name: String,
    },
    /// `http(s)://…`, without a slash at its end.
    Mirror {
        url: String,
        name: String,
    },
}

impl Origin {
    /// What `text` means: a URL; a folder; or else `publisher/name` (of published models the name alone), which is
    /// looked for where Hugging Face's tools put what they download.
    pub fn find(text: &Path) -> Result<Origin> {
        Origin::find_with(text, |name| std::env::var_os(name))
    }

    fn find_with(text: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Result<Origin> {
        let words = text.to_string_lossy();
        if words.starts_with("https://") || words.starts_with("http://") {
            let url = words.trim_end_matches('/').to_owned();
            let name = name_in_url(&url);
            return Ok(Origin::Mirror { url, name });
        }
        let text = folder_of(text);
        if text.is_file() {
            bail!(
                "{} is a file, and --model takes a folder, a name or a URL\nhint: {}",
                text.display(),
                hint_of_file(text)
            );
        }
        if text.is_dir() {
            // A repository in the cache may be given itself.
            return match text.join("snapshots").is_dir() && !text.join("config.json").exists() {
                true => snapshot(text),
                false => Ok(Origin::Folder { dir: text.to_owned(), name: name_of(text) }),
            };
        }
        let Some((publisher, name)) = repository(&words) else {
            bail!("there is no folder {}\nhint: {HINT}", text.display());
        };
        let hubs = hubs(variable);
        let places: Vec<PathBuf> =
            hubs.iter().map(|hub| hub.join(format!("models--{publisher}--{name}"))).collect();
        if let Some(place) = places.iter().find(|place| place.is_dir()) {
            return snapshot(place);
        }
        let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        bail!(
            "{publisher}/{name} is not on this machine: there is no folder {}, nor {}\nhint: {HINT}",
            text.display(),
            looked.join(", nor ")
        )
    }
}

const HINT: &str = "download the published checkpoint and give its folder (`hf download openai/gpt-oss-20b` puts it where \
    it is found by that name), give the URL of a copy, or add --weights synthetic:1 for random weights of a published \
    shape";

/// The folder, if this is the config.json in it.
pub fn folder_of(model: &Path) -> &Path {
    match model.parent() {
        Some(folder) if model.ends_with("config.json") && model.is_file() => {
            if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
        }
        _ => model,
    }
}

/// Without the publisher, of a published model.
pub fn published_name(text: &str) -> &str {
    let name = text.strip_prefix(PUBLISHER).and_then(|rest| rest.strip_prefix('/'));
    name.filter(|name| ModelSpec::published(name).is_some()).unwrap_or(text)
}

fn hint_of_file(file: &Path) -> String {
    if file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        let size = if file.to_string_lossy().contains("120b") { "120b" } else { "20b" };
        return format!(
            "GGUF is not read: take the published folder (hf download {PUBLISHER}/gpt-oss-{size})"
        );
    }
    "give the folder that it is in, with config.json, tokenizer.json and the weights".into()
}

/// Publisher and name, if `text` may be both, or is a published name.
fn repository(text: &str) -> Option<(&str, &str)> {
    let word = |word: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !word.is_empty() && !word.starts_with('.') && word.chars().all(plain)
    };
    match text.split_once('/') {
        Some((publisher, name)) => (word(publisher) && word(name)).then_some((publisher, name)),
        None => ModelSpec::published(text).map(|_| (PUBLISHER, text)),
    }
}

/// Where Hugging Face's tools look, in their order: each variable stands for the ones behind it.
fn hubs(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let all = [
        set("HF_HUB_CACHE"),
        set("HF_HOME").map(|home| home.join("hub")),
        cache.map(|cache| cache.join("huggingface").join("hub")),
    ];
    let mut hubs: Vec<PathBuf> = Vec::new();
    for hub in all.into_iter().flatten() {
        if !hubs.contains(&hub) {
            hubs.push(hub);
        }
    }
    hubs
}

/// The snapshot that `refs/main` names, or the only one.
fn snapshot(repository: &Path) -> Result<Origin> {
    let snapshots = repository.join("snapshots");
    let main = repository.join("refs").join("main");
    let revision = match std::fs::read_to_string(&main) {
        Ok(revision) => revision.trim().to_owned(),
        Err(_) => only_one(&snapshots)?,
    };
    ensure!(
        !revision.is_empty() && revision.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'),
        "{} names no revision: {revision:?}\nhint: download the model again",
        main.display()
    );
    let dir = snapshots.join(&revision);
    ensure!(
        dir.join("config.json").exists(),
        "{} has no config.json\nhint: the download is incomplete, run `hf download` again",
        dir.display()
    );
    let folder = repository.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = folder.rsplit("--").next().unwrap_or_default().to_owned();
    Ok(Origin::Folder { dir, name })
}

fn only_one(snapshots: &Path) -> Result<String> {
    let entries =
        std::fs::read_dir(snapshots).with_context(|| format!("cannot read {}", snapshots.display()))?;
    let names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    match <[String; 1]>::try_from(names) {
        Ok([name]) => Ok(name),
        Err(names) => bail!(
            "{} has {} snapshots, and refs/main says of none that it is meant\nhint: give the folder of one of them",
            snapshots.display(),
            names.len()
        ),
    }
}

/// The last word of the path; of Hugging Face's own URLs, the one before `resolve/REVISION`.
fn name_in_url(url: &str) -> String {
    let path = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("/resolve/").map_or(path, |(before, _)| before);
    path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("model").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn find(text: &str, variables: &[(&str, &Path)]) -> Result<Origin> {
        Origin::find_with(Path::new(text), |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_os_str().to_owned())
        })
    }

    /// A hub with one model, of revision `abc1`, as `hf download` leaves it.
    fn hub(dir: &Path) -> PathBuf {
        let repository = dir.join("models--openai--gpt-oss-20b");
        let snapshot = repository.join("snapshots").join("abc1");
        for folder in ["blobs", "refs", "snapshots/abc1"] {
            fs::create_dir_all(repository.join(folder)).unwrap();
        }
        fs::write(repository.join("blobs").join("d1"), "{}").unwrap();
        std::os::unix::fs::symlink("../../blobs/d1", snapshot.join("config.json")).unwrap();
        fs::write(repository.join("refs").join("main"), "abc1\n").unwrap();
        snapshot
    }

    #[test]
    fn a_model_is_found_where_hugging_face_puts_it() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = hub(&dir.path().join("hub"));
        let expected = Origin::Folder { dir: snapshot, name: "gpt-oss-20b".into() };
        let (hub, empty) = (dir.path().join("hub"), dir.path().join("empty"));
        let cases: [&[(&str, &Path)]; 3] = [
            &[("HF_HUB_CACHE", &hub)],
            &[("HF_HOME", dir.path()), ("HF_HUB_CACHE", &empty)],
            &[("HOME", &empty), ("HF_HUB_CACHE", &hub)],
        ];
        for variables in cases {
            for text in ["openai/gpt-oss-20b", "gpt-oss-20b"] {
                assert_eq!(find(text, variables).unwrap(), expected, "{text} {variables:?}");
            }
        }
        let home = tempfile::tempdir().unwrap();
        let in_home = home.path().join(".cache/huggingface");
        fs::create_dir_all(&in_home).unwrap();
        fs::rename(&hub, in_home.join("hub")).unwrap();
        assert!(find("openai/gpt-oss-20b", &[("HOME", home.path())]).is_ok());
        // The repository's own folder, and one of its snapshots.
        let repository = in_home.join("hub/models--openai--gpt-oss-20b");
        let Origin::Folder { dir, name } = find(repository.to_str().unwrap(), &[]).unwrap() else { panic!() };
        assert_eq!((dir, name.as_str()), (repository.join("snapshots/abc1"), "gpt-oss-20b"));
    }

    #[test]
    fn what_is_nowhere_is_an_error_that_says_where_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let error = find("openai/gpt-oss-20b", &[("HF_HOME", dir.path()), ("HOME", Path::new("/nowhere"))]);
        let error = error.unwrap_err().to_string();
        let hub = dir.path().join("hub/models--openai--gpt-oss-20b");
        for words in
            [hub.to_str().unwrap(), "/nowhere/.cache/huggingface/hub/models--openai--gpt-oss-20b", "\nhint: "]
        {
            assert!(error.contains(words), "{words}: {error}");
        }
        for text in ["/nonexistent/model", "../x", "a/b/c", "openai/", "other"] {
            let error = find(text, &[("HOME", dir.path())]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("there is no folder {text}\nhint: ")), "{error}");
        }
    }

    #[test]
    fn a_half_finished_download_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = hub(dir.path());
        let repository = dir.path().join("models--openai--gpt-oss-20b");
        let found = || find("gpt-oss-20b", &[("HF_HUB_CACHE", dir.path())]);
        fs::remove_file(snapshot.join("config.json")).unwrap();
        assert!(found().unwrap_err().to_string().contains("the download is incomplete"));
        fs::write(repository.join("refs/main"), "../../x").unwrap();
        assert!(found().unwrap_err().to_string().contains("names no revision"));
        fs::remove_file(repository.join("refs/main")).unwrap();
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        assert!(found().is_ok(), "there is only one");
        fs::create_dir(repository.join("snapshots/abc2")).unwrap();
        assert!(found().unwrap_err().to_string().contains("has 2 snapshots"));
    }

    #[test]
    fn a_url_has_a_name() {
        for (text, url, name) in [
            ("https://host/models/gpt-oss-20b/", "https://host/models/gpt-oss-20b", "gpt-oss-20b"),
            ("http://host:8080/m", "http://host:8080/m", "m"),
            (
                "https://huggingface.co/openai/gpt-oss-120b/resolve/main/",
                "https://huggingface.co/openai/gpt-oss-120b/resolve/main",
                "gpt-oss-120b",
            ),
        ] {
            let expected = Origin::Mirror { url: url.into(), name: name.into() };
            assert_eq!(find(text, &[]).unwrap(), expected);
        }
    }
}
