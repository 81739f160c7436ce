//! Programs of the system, run to their end.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

/// Runs a program with this input and returns its output. Panics with what it
/// said when it fails: a lab that is not as ordered proves nothing.
pub(crate) fn run(program: &str, args: &[&str], input: &str) -> String {
    match attempt(program, args, input) {
        Ok(output) => output,
        Err(why) => panic!("{why}"),
    }
}

/// The same for what may fail.
pub(crate) fn attempt(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    // A program that ends early does not read: its message says why.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {} failed: {}\n{input}", args.join(" "), said.trim()))
}

/// Whether a program can be found.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
