//! Connections of a client.

use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint, Error};

use super::Certificates;

impl Certificates {
    /// A channel to one or several peers, of endpoints with the scheme `https`. It connects when it is used,
    /// and anew when there are new certificates: what was asked before is still answered by the connection
    /// of before.
    ///
    /// # Errors
    ///
    /// Endpoints or certificates that cannot be used.
    pub fn channel(&self, endpoints: Vec<Endpoint>) -> Result<Channel, Error> {
        let mut loaded = self.0.loaded.subscribe();
        let first = with_tls(&endpoints, &loaded.borrow_and_update().client)?;
        let (channel, changes) = Channel::balance_channel(endpoints.len().max(1));
        for change in first {
            // There is room for all of them, and somebody to take them.
            let _ = changes.try_send(change);
        }
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = loaded.changed() => if changed.is_err() { break },
                    () = changes.closed() => return,
                }
                let client = loaded.borrow_and_update().client.clone();
                match with_tls(&endpoints, &client) {
                    Ok(renewed) => {
                        for change in renewed {
                            if changes.send(change).await.is_err() {
                                return;
                            }
                        }
                    }
                    Err(error) => tracing::warn!(%error, "new certificates cannot be used to call others"),
                }
            }
            // The peers stay what they are as long as somebody calls them.
            changes.closed().await;
        });
        Ok(channel)
    }
}

/// Peers by their place, to be called with certificates.
fn with_tls(
    endpoints: &[Endpoint],
    client: &tonic::transport::ClientTlsConfig,
) -> Result<Vec<Change<usize, Endpoint>>, Error> {
    let endpoints = endpoints.iter().enumerate();
    endpoints
        .map(|(at, endpoint)| Ok(Change::Insert(at, endpoint.clone().tls_config(client.clone())?)))
        .collect()
}
