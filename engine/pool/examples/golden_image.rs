//! Makes the golden image of the format, `engine/pool/tests/suite/golden/format-1.image`, anew.
//!
//! Only while the format is not released, after a change of it: `cargo run -p pollux-pool --example
//! golden_image`.

#![allow(clippy::unwrap_used, reason = "whoever runs it sees where it fails")]

#[path = "../tests/suite/golden/image.rs"]
mod image;

fn main() -> std::io::Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/golden/format-1.image");
    std::fs::write(path, image::make())
}
