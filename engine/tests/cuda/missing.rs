//! Machines that lack something: no driver, an old one, a stub, no cards. Each is played by a libcuda of a
//! few lines in a process of its own, because a process has one driver for good. None may panic.

use flotilla_engine::cuda::{Card, NEEDED};
use std::path::Path;
use std::process::Command;

/// Set in the processes that tests of this file start.
const TELL: &str = "FLOTILLA_TEST_TELL";

/// What those processes do: say what comes of opening a card.
fn tell() {
    match Card::open(0) {
        Ok(card) => println!("opened: {:?}", card.facts()),
        Err(error) => println!("refused: {error}"),
    }
}

/// What `tell` says where libraries are looked for in `folder` first.
fn told(folder: &Path, more: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "missing::no_driver_or_no_visible_card_is_told_with_a_hint", "--nocapture"]);
    command.env(TELL, "1");
    command.env("FLOTILLA_CUDA_PATH", folder).env_remove("LD_LIBRARY_PATH").envs(more.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !errors.contains("panicked"), "{text}{errors}");
    let (_, told) = text.split_once("refused: ").unwrap_or_else(|| panic!("not refused: {text}"));
    told.split_once("\ntest ").or(told.split_once("\n\n")).map_or(told, |(told, _)| told).to_owned()
}

/// A driver that answers like this.
#[derive(Clone, Copy)]
struct Fake {
    file: &'static str,
    soname: &'static str,
    version: i32,
    init: i32,
    cards: i32,
    /// Functions that it does not have.
    without: &'static str,
}

impl Default for Fake {
    fn default() -> Fake {
        Fake { file: "libcuda.so.1", soname: "libcuda.so", version: 12080, init: 0, cards: 1, without: "" }
    }
}

impl Fake {
    fn build(self, folder: &Path) {
        let mut text = format!(
            "int cuDriverGetVersion(int* version) {{ *version = {}; return {}; }}\n\
             int cuInit(unsigned flags) {{ return {}; }}\n\
             int cuDeviceGetCount(int* count) {{ *count = {}; return 0; }}\n",
            self.version,
            if self.init == 34 { 34 } else { 0 },
            self.init,
            self.cards
        );
        const ANSWERED: [&str; 3] = ["cuDriverGetVersion", "cuInit", "cuDeviceGetCount"];
        for symbol in NEEDED.iter().filter(|symbol| **symbol != self.without && !ANSWERED.contains(symbol)) {
            text += &format!("int {symbol}() {{ return 999; }}\n");
        }
        std::fs::create_dir_all(folder).unwrap();
        let source = folder.join("fake.c");
        std::fs::write(&source, text).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-w", "-o"]).arg(folder.join(self.file));
        let built = compiler.arg(format!("-Wl,-soname,{}", self.soname)).arg(&source).status();
        assert!(built.unwrap().success());
    }

    fn told(self, more: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir().unwrap();
        self.build(folder.path());
        told(folder.path(), more)
    }
}

#[test]
fn no_driver_or_no_visible_card_is_told_with_a_hint() {
    // This test is also what `told` runs in a process of its own.
    if std::env::var_os(TELL).is_some() {
        return tell();
    }
    let folder = tempfile::tempdir().unwrap();
    // Where there is a driver all the same, it shows no card.
    let told = told(folder.path(), &[("CUDA_VISIBLE_DEVICES", "")]);
    assert!(told.contains("\nhint: "), "{told}");
    if told.starts_with("the NVIDIA driver") {
        assert!(
            told.starts_with("the NVIDIA driver (libcuda.so, libcuda.so.1) is not here: looked in "),
            "{told}"
        );
        assert!(told.contains(folder.path().to_str().unwrap()), "{told}");
    }
}

#[test]
fn a_file_that_is_no_library_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libcuda.so.1"), "not a library").unwrap();
    let told = told(folder.path(), &[("CUDA_VISIBLE_DEVICES", "")]);
    let refused = "libcuda.so.1 cannot be used: ";
    assert!(told.contains(refused) || !told.starts_with("the NVIDIA driver ("), "{told}");
}

#[test]
fn a_stub_is_told_apart() {
    let told = Fake { init: 34, ..Fake::default() }.told(&[]);
    assert!(told.contains("is a stub") && told.contains("LD_LIBRARY_PATH"), "{told}");
    // By its folder, before anything of it is called.
    let folder = tempfile::tempdir().unwrap();
    let stubs = folder.path().join("stubs");
    Fake::default().build(&stubs);
    let told = self::told(&stubs, &[("CUDA_VISIBLE_DEVICES", "")]);
    assert!(told.contains("it is a stub") || !told.starts_with("the NVIDIA driver ("), "{told}");
}

#[test]
fn an_old_driver_is_told_with_both_versions() {
    let told = Fake { version: 11040, ..Fake::default() }.told(&[]);
    assert!(told.contains("is of CUDA 11.4, expected at least 12.0\nhint: install"), "{told}");
}

#[test]
fn a_driver_without_a_function_is_told_before_cudarc_panics() {
    let told = Fake { without: "cuGraphUpload", ..Fake::default() }.told(&[]);
    assert!(told.contains("has no cuGraphUpload"), "{told}");
}

#[test]
fn no_cards_are_told_with_what_hides_them() {
    let none = Fake { init: 100, ..Fake::default() };
    let told = none.told(&[("CUDA_VISIBLE_DEVICES", "")]);
    assert!(told.contains("shows no card\nhint: CUDA_VISIBLE_DEVICES is set to \"\""), "{told}");
    let told = Fake { cards: 0, ..Fake::default() }.told(&[("CUDA_VISIBLE_DEVICES", "7")]);
    assert!(told.contains("is set to \"7\", which hides cards"), "{told}");
}

#[test]
fn a_driver_that_does_not_start_is_told_with_what_to_do() {
    let told = Fake { init: 803, ..Fake::default() }.told(&[]);
    assert!(told.contains("of different versions (CUDA error 803)\nhint: restart the machine"), "{told}");
    let told = Fake { init: 4711, ..Fake::default() }.told(&[]);
    assert!(told.contains("CUDA error 4711"), "{told}");
}

#[test]
fn a_card_that_cannot_be_opened_is_told_in_the_drivers_words() {
    // Everything after the start gives error 999.
    let told = Fake::default().told(&[]);
    assert!(told.starts_with("the driver cannot open card 0: "), "{told}");
}

#[test]
fn another_libcuda_in_the_loaders_path_is_told() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Fake { soname: "libcuda.so.1", ..Fake::default() }.build(ours.path());
    Fake { file: "libcuda.so", ..Fake::default() }.build(other.path());
    let told = told(ours.path(), &[("LD_LIBRARY_PATH", other.path().to_str().unwrap())]);
    assert!(told.contains("hands out another libcuda at "), "{told}");
    assert!(told.contains(other.path().join("libcuda.so").to_str().unwrap()), "{told}");
}

#[test]
fn two_files_of_the_drivers_names_in_the_loaders_path_are_no_trouble() {
    // As under WSL. Past the start everything gives error 999.
    let (nothing, system) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for file in ["libcuda.so", "libcuda.so.1"] {
        Fake { file, soname: "libcuda.so.1", ..Fake::default() }.build(system.path());
    }
    let told = told(nothing.path(), &[("LD_LIBRARY_PATH", system.path().to_str().unwrap())]);
    assert!(told.starts_with("the driver cannot open card 0: "), "{told}");
}
