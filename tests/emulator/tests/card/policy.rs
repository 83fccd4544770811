//! What happens to tests where there is no C++ compiler: passed over, with a hint, unless they are required.

use std::process::{Command, Output};

/// Runs one test of this binary in a process that has no compiler.
fn without_compiler(required: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "graphs::a_stream_that_is_busy_says_so", "--nocapture"])
        .env("FLOTILLA_EMULATED_CXX", "no-such-compiler")
        .env("FLOTILLA_TEST_EMULATED", required)
        .output()
        .unwrap()
}

#[test]
fn without_a_compiler_tests_are_passed_over_with_a_hint() {
    let output = without_compiler("");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("passed over") && said.contains("hint: apt install g++"), "{said}");
}

#[test]
fn without_a_compiler_required_tests_fail() {
    let output = without_compiler("require");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("FLOTILLA_TEST_EMULATED=require"));
}
