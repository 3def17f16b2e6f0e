//! Helpers to write expected bytes by hand in tests.

/// `total_bytes` zeros with each `(offset, bytes)` laid over them: how the figures of the specifications
/// read.
pub(crate) fn at_offsets(total_bytes: usize, pieces: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; total_bytes];
    for (offset, piece) in pieces {
        bytes[*offset..*offset + piece.len()].copy_from_slice(piece);
    }
    bytes
}
