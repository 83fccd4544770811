//! An emulated card for tests: shared libraries with the names of CUDA's (`libcuda`, `libnvrtc`, `libnccl`, `libcublasLt`) that run
//! kernels on the CPU, so that the production path above them runs unchanged where there is no GPU. This crate
//! holds their C++ sources, compiles them once per content and hands out the folder; it calls none of them.
//!
//! What is emulated and what is not stands at the head of each file of `card/`.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The C++ sources, by their path below the folder that is handed out. The headers are needed there at run time
/// too: NVRTC's double includes them before each kernel source.
const SOURCES: &[(&str, &str)] = &[
    ("card/arithmetic.h", include_str!("../card/arithmetic.h")),
    ("card/block.h", include_str!("../card/block.h")),
    ("card/cuda_on_cpu.h", include_str!("../card/cuda_on_cpu.h")),
    ("card/faults.h", include_str!("../card/faults.h")),
    ("card/fiber.h", include_str!("../card/fiber.h")),
    ("card/image.h", include_str!("../card/image.h")),
    ("card/launch.h", include_str!("../card/launch.h")),
    ("card/matrix.h", include_str!("../card/matrix.h")),
    ("card/memory.h", include_str!("../card/memory.h")),
    ("card/table.h", include_str!("../card/table.h")),
    ("card/warp.h", include_str!("../card/warp.h")),
    ("card/warpgroup.h", include_str!("../card/warpgroup.h")),
    ("card/driver/driver.h", include_str!("../card/driver/driver.h")),
    ("card/driver/cards.cpp", include_str!("../card/driver/cards.cpp")),
    ("card/driver/graphs.cpp", include_str!("../card/driver/graphs.cpp")),
    ("card/driver/launches.cpp", include_str!("../card/driver/launches.cpp")),
    ("card/driver/memory.cpp", include_str!("../card/driver/memory.cpp")),
    ("card/driver/modules.cpp", include_str!("../card/driver/modules.cpp")),
    ("card/driver/streams.cpp", include_str!("../card/driver/streams.cpp")),
    ("card/nccl/nccl.h", include_str!("../card/nccl/nccl.h")),
    ("card/nccl/calls.cpp", include_str!("../card/nccl/calls.cpp")),
    ("card/nccl/operations.cpp", include_str!("../card/nccl/operations.cpp")),
    ("card/nccl/world.cpp", include_str!("../card/nccl/world.cpp")),
    ("card/nvrtc.cpp", include_str!("../card/nvrtc.cpp")),
    ("card/cublas.cpp", include_str!("../card/cublas.cpp")),
];

/// A library, the sources it is made of, and the names under which programs look for it. The first name is the one
/// it carries inside (its soname): once it is loaded by path, a later search for that bare name finds it.
struct Library {
    /// Below the folder that is handed out.
    folder: &'static str,
    names: &'static [&'static str],
    sources: &'static [&'static str],
    links: &'static [&'static str],
}

/// Where cuBLASLt's double lies, below [`folder`]: apart, for most tests are about the kernels that it stands in for.
pub const CUBLAS: &str = "cublas";

const LIBRARIES: &[Library] = &[
    Library {
        folder: ".",
        names: &["libcuda.so", "libcuda.so.1"],
        sources: &[
            "card/driver/cards.cpp",
            "card/driver/graphs.cpp",
            "card/driver/launches.cpp",
            "card/driver/memory.cpp",
            "card/driver/modules.cpp",
            "card/driver/streams.cpp",
        ],
        links: &[],
    },
    Library {
        folder: ".",
        names: &["libnccl.so", "libnccl.so.2"],
        sources: &["card/nccl/calls.cpp", "card/nccl/operations.cpp", "card/nccl/world.cpp"],
        // Its operations are work of the emulated driver's streams.
        links: &["libcuda.so", "-lrt"],
    },
    Library {
        folder: ".",
        names: &["libnvrtc.so", "libnvrtc.so.12"],
        sources: &["card/nvrtc.cpp"],
        links: &[],
    },
    Library {
        folder: CUBLAS,
        names: &["libcublasLt.so", "libcublasLt.so.12"],
        sources: &["card/cublas.cpp"],
        links: &["libcuda.so"],
    },
];

/// The folder with the libraries, compiled now if need be. Safe to call from many tests and processes.
pub fn folder() -> Result<PathBuf, String> {
    static ONCE: std::sync::OnceLock<Result<PathBuf, String>> = std::sync::OnceLock::new();
    ONCE.get_or_init(|| folder_in(&target_folder().join("emulator"))).clone()
}

/// [`folder`] for a test that cannot do without: `None`, with a line on stderr, where there is no C++ compiler; a
/// panic in its place where `FLOTILLA_TEST_EMULATED=require` says that the test must not be passed over.
pub fn folder_or_skip() -> Option<PathBuf> {
    match folder() {
        Ok(folder) => Some(folder),
        Err(reason) if required() => panic!("FLOTILLA_TEST_EMULATED=require, but {reason}"),
        Err(reason) => {
            eprintln!("passed over: {reason}");
            None
        }
    }
}

/// Whether tests on the emulated card must run here (`FLOTILLA_TEST_EMULATED=require`) or may be passed over.
pub fn required() -> bool {
    std::env::var_os("FLOTILLA_TEST_EMULATED").is_some_and(|value| value == "require")
}

/// Cargo's target folder, from where the test binary lies (`<target>/<profile>/deps/<test>`).
fn target_folder() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let deps = exe.ancestors().find(|folder| folder.file_name().is_some_and(|name| name == "deps"));
    match deps.and_then(|deps| deps.ancestors().nth(2)) {
        Some(target) => target.to_path_buf(),
        None => std::env::temp_dir().join("flotilla"),
    }
}

fn folder_in(parent: &Path) -> Result<PathBuf, String> {
    let compiler = compiler_version()?;
    let mut hash = Fnv::new();
    hash.write(compiler.as_bytes());
    for (path, text) in SOURCES {
        hash.write(path.as_bytes());
        hash.write(text.as_bytes());
    }
    let done = parent.join(format!("{:016x}", hash.0));
    let failed = |what: &str, error: std::io::Error| {
        format!("the emulated card: {what} in {}: {error}", parent.display())
    };
    fs::create_dir_all(parent).map_err(|e| failed("cannot make a folder", e))?;
    let lock = File::create(parent.join("lock")).map_err(|e| failed("cannot make the lock file", e))?;
    lock.lock().map_err(|e| failed("cannot lock", e))?;
    if done.is_dir() {
        return Ok(done);
    }
    let fresh = parent.join("unfinished");
    let _ = fs::remove_dir_all(&fresh);
    for (path, text) in SOURCES {
        let path = fresh.join(path);
        fs::create_dir_all(path.parent().expect("a path below a folder"))
            .map_err(|e| failed("cannot make a folder", e))?;
        fs::write(&path, text).map_err(|e| failed("cannot write", e))?;
    }
    for library in LIBRARIES {
        build(library, &fresh)?;
    }
    fs::rename(&fresh, &done).map_err(|e| failed("cannot rename", e))?;
    Ok(done)
}

fn compiler() -> std::ffi::OsString {
    std::env::var_os("FLOTILLA_EMULATED_CXX").unwrap_or_else(|| "c++".into())
}

fn compiler_version() -> Result<String, String> {
    let compiler = compiler();
    match Command::new(&compiler).arg("--version").output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        _ => Err(format!(
            "the emulated card needs a C++ compiler, and `{}` does not run here\nhint: apt install g++, or name one in FLOTILLA_EMULATED_CXX",
            compiler.to_string_lossy()
        )),
    }
}

fn build(library: &Library, folder: &Path) -> Result<(), String> {
    let name = library.names[0];
    let place = folder.join(library.folder);
    fs::create_dir_all(&place)
        .map_err(|e| format!("the emulated card: cannot make a folder for {name}: {e}"))?;
    let output = Command::new(compiler())
        .current_dir(folder)
        .args([
            "-std=c++17",
            "-O1",
            "-shared",
            "-fPIC",
            "-pthread",
            "-fvisibility=hidden",
            "-Wl,-rpath,$ORIGIN",
        ])
        .arg(format!("-Wl,-soname,{name}"))
        .arg("-o")
        .arg(place.join(name))
        .args(library.sources)
        .args(library.links)
        .arg("-ldl")
        .output()
        .map_err(|e| format!("the emulated card: the C++ compiler does not start: {e}"))?;
    if !output.status.success() {
        return Err(format!(
            "the emulated card: {name} does not compile:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    for other in &library.names[1..] {
        std::os::unix::fs::symlink(name, place.join(other))
            .map_err(|e| format!("the emulated card: cannot link {other}: {e}"))?;
    }
    Ok(())
}

/// FNV-1a: a name for a content, not a safeguard.
struct Fnv(u64);

impl Fnv {
    fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes.iter().chain(&[0]) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
