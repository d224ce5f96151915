//! Compiles the contract without protoc: protox parses it, tonic generates from the descriptors.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const FILES: [&str; 5] = [
    "ashlar/v1/node.proto",
    "ashlar/v1/store.proto",
    "ashlar/v1/replica.proto",
    "ashlar/v1/engine.proto",
    "ashlar/v1/volume.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let output = PathBuf::from(env::var("OUT_DIR")?);
    // Served by reflection, so that grpcurl and the like work without these files.
    let encoded = protox::prost::Message::encode_to_vec(&descriptors);
    fs::write(output.join("descriptors.bin"), encoded)?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
