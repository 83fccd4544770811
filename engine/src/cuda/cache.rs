//! Compiled programs on disk, one file each, named by a hash of all that they are made of. An entry that
//! is damaged is as good as none; a folder that cannot be written costs time at each start, no more. The
//! folder may be emptied whenever one likes.

use super::error::Version;
use super::nvrtc::Nvrtc;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::UNIX_EPOCH;

/// The folder, if it is not to be the user's own cache folder.
const FOLDER_VARIABLE: &str = "FLOTILLA_CACHE";

/// Changes with what an entry is, so that old ones are not found.
const FORMAT: &str = "flotilla cubin 1";

pub(super) type Key = [u8; blake3::OUT_LEN];

/// Everything that the program depends on: the compiler (which is told apart by its file, too), the
/// driver, the headers, the source, the options with architecture and shapes.
pub(super) fn key(
    nvrtc: &Nvrtc,
    driver: Version,
    headers: &[(&str, &str)],
    name: &str,
    text: &str,
    options: &[String],
) -> Key {
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &str| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    for part in [FORMAT, &nvrtc.version().to_string(), &file(nvrtc.path()), &driver.to_string(), name, text] {
        add(part);
    }
    for (name, content) in headers {
        add(name);
        add(content);
    }
    for option in options {
        add(option);
    }
    hasher.finalize().into()
}

/// Two compilers of the same version differ in this, if they differ.
fn file(path: &Path) -> String {
    let about = fs::metadata(path).ok().map(|about| {
        let changed = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        (about.len(), changed.map(|time| time.as_nanos()))
    });
    format!("{} {about:?}", path.display())
}

static KEPT_IN: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Keeps compiled programs in `folder` from now on, whatever the environment says.
pub fn keep_in(folder: &Path) {
    *KEPT_IN.lock().unwrap() = Some(folder.to_owned());
}

/// The folder of the entries; nothing where the system has no place for such things.
fn folder() -> Option<PathBuf> {
    if let Some(folder) = KEPT_IN.lock().unwrap().clone() {
        return Some(folder);
    }
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || {
        Some(set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?.join("flotilla"))
    };
    Some(set(FOLDER_VARIABLE).or_else(cache)?.join("cubin"))
}

pub(super) fn load(key: &Key, name: &str) -> Option<Vec<u8>> {
    read(&folder()?.join(entry(key, name)))
}

pub(super) fn store(key: &Key, name: &str, cubin: &[u8]) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    let Some(folder) = folder() else { return };
    let path = folder.join(entry(key, name));
    if let Err(error) = write(&path, cubin)
        && !WARNED.swap(true, Ordering::Relaxed)
    {
        tracing::warn!(
            "compiled kernels cannot be kept in {}: {error}\nhint: set {FOLDER_VARIABLE} to a folder that can be written, or each start compiles anew",
            folder.display()
        );
    }
}

/// `norm-0123….cubin`: the name is for people who look into the folder.
fn entry(key: &Key, name: &str) -> String {
    let name = name.strip_suffix(".cu").unwrap_or(name);
    format!("{name}-{}.cubin", blake3::Hash::from_bytes(*key).to_hex())
}

/// An entry is the program and, behind it, its hash.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = fs::read(path).ok()?;
    let at = bytes.len().checked_sub(blake3::OUT_LEN);
    let whole = at.is_some_and(|at| blake3::hash(&bytes[..at]).as_bytes()[..] == bytes[at..]);
    if !whole {
        tracing::warn!("{} is damaged and is made anew", path.display());
        return None;
    }
    bytes.truncate(at?);
    Some(bytes)
}

/// Whole or not at all: written under another name, then renamed.
fn write(path: &Path, cubin: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let folder = path.parent().expect("an entry is in a folder");
    fs::create_dir_all(folder)?;
    let unique = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let unfinished = folder.join(format!(".{}-{}.tmp", unique.0, unique.1));
    let written = (|| {
        let mut file = fs::File::create(&unfinished)?;
        file.write_all(cubin)?;
        file.write_all(blake3::hash(cubin).as_bytes())?;
        drop(file);
        fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inner").join("a.cubin");
        assert_eq!(read(&path), None);
        write(&path, b"program").unwrap();
        assert_eq!(read(&path).as_deref(), Some(&b"program"[..]));
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(read(&path), None, "byte {at}");
            fs::write(&path, &bytes[..at]).unwrap();
            assert_eq!(read(&path), None, "cut at {at}");
        }
        write(&path, b"again").unwrap();
        assert_eq!(read(&path).as_deref(), Some(&b"again"[..]));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing unfinished is left");
    }
}
