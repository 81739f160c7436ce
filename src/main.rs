//! The `p2p-node` binary; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    p2p_node::cli::main()
}
