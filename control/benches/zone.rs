//! Ten thousand volumes on a thousand engines lose a zone, in virtual time: how long planning takes in real
//! time.

#![allow(dead_code, reason = "shared with tests that use the rest")]
#![allow(clippy::print_stdout, reason = "what was measured")]

#[path = "../tests/cluster/common/mod.rs"]
mod common;
#[path = "../tests/cluster/scale.rs"]
mod scale;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => println!("{}", runtime.block_on(scale::lose_zone(250, 10_000))),
        Err(error) => println!("no runtime: {error}"),
    }
}
