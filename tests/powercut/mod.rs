//! Power cuts for a process under test; `shim.c` says how and what it models.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command},
};

use tempfile::TempDir;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/powercut/shim.c");

/// A compiled shim, with its notes of what is not synced.
pub(crate) struct PowerCut {
    home: TempDir,
}

impl PowerCut {
    /// Compiles the shim. `Err` says why that is not possible here.
    pub(crate) fn new() -> Result<Self, String> {
        let home = tempfile::tempdir().map_err(|error| error.to_string())?;
        let cut = Self { home };
        std::fs::create_dir(cut.undo()).map_err(|error| error.to_string())?;
        compile(&["-shared", "-fPIC"], &cut.shim())?;
        compile(&["-DRESTORE"], &cut.restore())?;
        Ok(cut)
    }

    /// Has a process's changes below `state`, which must exist, followed.
    /// After it ended, another one can go on.
    pub(crate) fn follow<'a>(&self, command: &'a mut Command, state: &Path) -> &'a mut Command {
        command.env("LD_PRELOAD", self.shim()).env("POWERCUT_DIR", state).env("POWERCUT_UNDO", self.undo())
    }

    /// Kills the process and takes back all that it did not sync.
    pub(crate) fn cut(&self, process: &mut Child) {
        process.kill().unwrap();
        process.wait().unwrap();
        let restored = Command::new(self.restore()).arg(self.undo()).output().unwrap();
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    }

    fn shim(&self) -> PathBuf {
        self.home.path().join("shim.so")
    }

    fn restore(&self) -> PathBuf {
        self.home.path().join("restore")
    }

    fn undo(&self) -> PathBuf {
        self.home.path().join("undo")
    }
}

fn compile(flags: &[&str], output: &Path) -> Result<(), String> {
    let compiled = Command::new("cc").args(["-O2", "-Wall"]).args(flags).arg("-o").arg(output).arg(SOURCE).output();
    match compiled {
        Err(error) => Err(format!("no C compiler: {error}")),
        Ok(result) if result.status.success() => Ok(()),
        Ok(result) => panic!("{}", String::from_utf8_lossy(&result.stderr)),
    }
}
