//! Compiles `proto/message.proto` with protox, so that no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/message.proto");
    let descriptors = protox::compile(["message.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Reflection and --json read the descriptors at run time.
    fs::write(out.join("p2p.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Payloads stay reference-counted from the socket to the link.
        .bytes(".p2p.v1.Message.payload")
        // Its `connect` constructor would clash with the RPC of that name.
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
