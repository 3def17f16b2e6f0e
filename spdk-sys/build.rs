//! Finds an installed SPDK, makes bindings to what is used of it, and says what is to be linked.
//!
//! Without the feature `spdk` nothing is looked for.

#![allow(clippy::print_stdout, reason = "cargo reads it")]

#[cfg(feature = "spdk")]
#[path = "build/bindings.rs"]
mod bindings;
#[cfg(feature = "spdk")]
#[path = "build/install.rs"]
mod install;

#[cfg(feature = "spdk")]
fn main() {
    for path in ["build.rs", "build", "wrapper.h", "log.c", "log.h"] {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Err(problem) = install::find().and_then(|install| {
        bindings::generate(&install)?;
        cc::Build::new()
            .file("log.c")
            .includes(&install.include_directories)
            .try_compile("pollux_spdk_log")
            .map_err(|error| format!("log.c cannot be compiled: {error}"))?;
        install.link();
        Ok(())
    }) {
        // One message, line by line: Cargo prints each as it is.
        for line in problem.lines() {
            println!("cargo::error={line}");
        }
    }
}

#[cfg(not(feature = "spdk"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
