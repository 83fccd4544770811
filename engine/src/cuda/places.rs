//! Where CUDA's libraries may lie: a list of folders, made from the environment; no file is opened here.

use std::collections::BTreeSet;
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

/// Folders to look in first, separated by colons: with libraries in them, or in their `lib64` or `lib`, or
/// a Python `site-packages`.
pub const PATH_VARIABLE: &str = "FLOTILLA_CUDA_PATH";

/// Where distributions, NVIDIA's toolkit and WSL put them.
const WELL_KNOWN: [&str; 7] = [
    "/usr/local/cuda/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
    "/opt/cuda/lib64",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Whatever the system's loader knows: its cache, LD_LIBRARY_PATH.
    Loader,
    Folder(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Loader => f.write_str("the system's library path"),
            Place::Folder(folder) => write!(f, "{}", folder.display()),
        }
    }
}

impl Place {
    /// What to open of these names, in their order: files that are there, or bare names for the loader.
    pub fn files(&self, names: &[&str]) -> Vec<PathBuf> {
        match self {
            Place::Loader => names.iter().map(PathBuf::from).collect(),
            Place::Folder(folder) => {
                names.iter().map(|name| folder.join(name)).filter(|file| file.is_file()).collect()
            }
        }
    }
}

/// All places, the first to look in first: `first`, what the user named, the loader, and then the rest.
pub fn all(first: &[PathBuf]) -> Vec<Place> {
    let named = env::var_os(PATH_VARIABLE).unwrap_or_default();
    let named = env::split_paths(&named).filter(|folder| !folder.as_os_str().is_empty());
    let named = first.iter().cloned().chain(named).flat_map(|folder| with_inner(&folder));
    let rest = WELL_KNOWN.iter().map(PathBuf::from).chain(toolkits()).chain(wheels());
    let rest = rest.filter(|folder| folder.is_dir());

    let mut seen = BTreeSet::new();
    let mut folders = |places: &mut dyn Iterator<Item = PathBuf>| -> Vec<Place> {
        places.filter(|folder| seen.insert(folder.clone())).map(Place::Folder).collect()
    };
    let mut places = folders(&mut named.into_iter());
    places.push(Place::Loader);
    places.extend(folders(&mut rest.into_iter()));
    places
}

/// A folder that the user named, and what may be meant by it.
fn with_inner(folder: &Path) -> Vec<PathBuf> {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let inner = ["lib64", "lib"].map(|inner| folder.join(inner)).into_iter().filter(|inner| inner.is_dir());
    let inner: Vec<PathBuf> = inner.chain(wheels_in(&folder)).collect();
    std::iter::once(folder).chain(inner).collect()
}

fn toolkits() -> impl Iterator<Item = PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let conda = env::var_os("CONDA_PREFIX").map(|prefix| PathBuf::from(prefix).join("lib"));
    homes.map(|home| PathBuf::from(home).join("lib64")).chain(conda)
}

/// The folders of NVIDIA's wheels in the Python at hand: that of the virtual environment, those on PATH,
/// and what the user installed for himself.
fn wheels() -> Vec<PathBuf> {
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = env::split_paths(&path)
        .filter_map(|folder| {
            let python = folder.join("python3");
            // A virtual environment's python3 is a link; its packages are beside the link.
            Some([python.canonicalize().ok()?, python])
        })
        .flatten()
        .filter_map(|python| Some(python.parent()?.parent()?.to_owned()))
        .collect();
    // Debian's packages are under /usr/local as well.
    let own = env::var_os("HOME").map(|home| PathBuf::from(home).join(".local"));
    let prefixes = environments.chain(on_path).chain(own).chain([PathBuf::from("/usr/local")]);
    prefixes.flat_map(|prefix| site_packages(&prefix)).flat_map(|folder| wheels_in(&folder)).collect()
}

/// PREFIX/lib/python3.*/{site,dist}-packages
fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let pythons = inside(&prefix.join("lib")).into_iter().filter(|folder| {
        folder.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"python3"))
    });
    pythons
        .flat_map(|python| ["site-packages", "dist-packages"].map(|packages| python.join(packages)))
        .collect()
}

/// SITE/nvidia/*/lib: one folder a wheel (`cuda_nvrtc`, `nccl`), or `cu13` for most of CUDA 13.
fn wheels_in(site: &Path) -> Vec<PathBuf> {
    let wheels = inside(&site.join("nvidia")).into_iter();
    wheels.map(|wheel| wheel.join("lib")).filter(|folder| folder.is_dir()).collect()
}

/// What is in a folder, in the order of names; nothing if there is no such folder.
fn inside(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).map(|entries| entries.flatten().map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> = entries.map(Iterator::collect).unwrap_or_default();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::create_dir_all;

    #[test]
    fn both_layouts_of_wheels_are_known() {
        let site = tempfile::tempdir().unwrap();
        for wheel in ["cuda_nvrtc/lib", "cu13/lib", "nccl/lib", "cuda_runtime/include"] {
            create_dir_all(site.path().join("nvidia").join(wheel)).unwrap();
        }
        let found = wheels_in(site.path());
        let expected = ["cu13/lib", "cuda_nvrtc/lib", "nccl/lib"];
        assert_eq!(found, expected.map(|wheel| site.path().join("nvidia").join(wheel)));
    }

    #[test]
    fn packages_of_every_python_of_a_prefix() {
        let prefix = tempfile::tempdir().unwrap();
        for python in ["python3.11", "python3.12", "perl5"] {
            create_dir_all(prefix.path().join("lib").join(python).join("site-packages")).unwrap();
        }
        let found = site_packages(prefix.path());
        assert!(found.contains(&prefix.path().join("lib/python3.12/site-packages")));
        assert!(!found.iter().any(|folder| folder.starts_with(prefix.path().join("lib/perl5"))));
    }

    #[test]
    fn what_is_named_comes_before_the_loader_and_is_taken_with_its_inner_folders() {
        let named = tempfile::tempdir().unwrap();
        create_dir_all(named.path().join("lib64")).unwrap();
        let places = all(&[named.path().to_owned()]);
        assert_eq!(places[0], Place::Folder(named.path().to_owned()));
        assert_eq!(places[1], Place::Folder(named.path().join("lib64")));
        assert!(places.contains(&Place::Loader));
    }

    #[test]
    fn files_come_in_the_order_of_the_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libx.so", "libx.so.2", "liby.so"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let files = Place::Folder(folder.path().to_owned()).files(&["libx.so.2", "libx.so.1", "libx.so"]);
        assert_eq!(files, ["libx.so.2", "libx.so"].map(|name| folder.path().join(name)));
    }
}
