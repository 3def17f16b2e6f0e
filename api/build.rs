//! Compiles the .proto files without a system protoc.

#![allow(clippy::print_stdout, reason = "cargo reads it")]

use std::error::Error;

const INCLUDES: [&str; 1] = ["proto"];
const FILES: [&str; 1] = ["proto/pollux/engine/v1/engine.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for include in INCLUDES {
        println!("cargo::rerun-if-changed={include}");
    }
    let descriptors = protox::compile(FILES, INCLUDES)?;
    tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize)]")
        .type_attribute("Event.what", "#[serde(rename_all = \"snake_case\")]")
        .compile_fds(descriptors)?;
    Ok(())
}
