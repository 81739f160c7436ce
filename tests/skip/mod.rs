//! For tests that need what a machine may not have: root, or a program.

use std::{fs::OpenOptions, io::Write};

/// Says why a test does not run here. `scripts/test` names a file for it and
/// prints it at the end; the caller returns.
pub(crate) fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    let Some(file) = std::env::var_os("TEST_SKIPS") else { return };
    // One write, so that lines of tests that run at once do not mix.
    let line = format!("{test}: {why}\n");
    let written =
        OpenOptions::new().append(true).create(true).open(&file).and_then(|mut f| f.write_all(line.as_bytes()));
    assert!(written.is_ok(), "cannot note in {} that {test} was skipped: {written:?}", file.display());
}
