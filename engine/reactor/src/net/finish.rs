//! The end of a connection: the last bytes out, and the peer's goodbye.

use std::io;
use std::time::Duration;

use super::{Output, Stream, receive};
use crate::timer::timeout;

/// How long an ended connection may take to be rid of what was still to be sent, and to see the peer close.
const LINGER: Duration = Duration::from_secs(5);

/// What a lingering connection receives and drops before it is closed all the same.
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Sends what is left, ends the sending half, and waits for the peer to close, so that it sees the last PDU
/// and not a reset. Bounded in time and bytes.
pub async fn finish(mut stream: Box<dyn Stream>, mut output: Output) {
    // Whether the peer took it all no longer matters to anyone here.
    let _ = timeout(LINGER, async {
        flush(&mut *stream, &mut output).await?;
        stream.shutdown()?;
        let mut discarded = 0;
        let mut into = [0u8; 4096];
        while discarded < LINGER_BYTES_MAX {
            match receive(&mut *stream, &mut into).await? {
                0 => break,
                received => discarded += received,
            }
        }
        io::Result::Ok(())
    })
    .await;
}

/// Sends everything.
pub async fn flush(stream: &mut dyn Stream, output: &mut Output) -> io::Result<()> {
    while !output.is_empty() {
        std::future::poll_fn(|context| output.poll_send(stream, context)).await?;
    }
    Ok(())
}
