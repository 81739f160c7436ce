//! `completions`, `man` and `version`: no daemon needed.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{args::Cli, errors::Failure, output::Out};

const EXAMPLES: &str = "\
Examples:
  p2p-node completions bash > ~/.local/share/bash-completion/completions/p2p-node
  p2p-node completions fish > ~/.config/fish/completions/p2p-node.fish";

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

/// Prints completions made from the definition of the command line.
pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "p2p-node", &mut script);
    Out::new(false).bytes(&script)
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Where to write the pages
    directory: PathBuf,
}

/// Writes a man page for each command, made from the definition of the command
/// line.
pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    clap_mangen::generate_to(Cli::command(), &args.directory)
        .map_err(|error| Failure::Failed(format!("cannot write man pages to {}: {error}", args.directory.display())))
}

/// Prints the version of this executable.
pub(super) fn version(out: Out) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if out.json() {
        out.value(&serde_json::json!({ "version": version }))
    } else {
        out.line(&format!("p2p-node {version}"))
    }
}
