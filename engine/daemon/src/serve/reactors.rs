//! The reactors of an engine: started on their cores, watched while they run, stopped at the end.

use std::future::pending;
use std::path::Path;
use std::time::Duration;

use pollux_hugepages::{PoolOptions, SYSFS_ROOT, Topology};
use pollux_reactor::real::{IdlePolicy, ReactorThread, Settings};
use pollux_reactor::{ReactorHandle, ReactorId};
use tokio::task::JoinSet;

use super::error::StartError;
use crate::settings::{IdleSettings, ReactorSettings};

/// The reactors of an engine.
pub(super) struct EngineReactors {
    threads: Vec<ReactorThread>,
    cores: Vec<u32>,
}

impl EngineReactors {
    /// Starts one reactor for each core, or a single one that is not pinned.
    ///
    /// # Errors
    ///
    /// [`StartError::Reactor`]; those that were started are stopped then.
    pub(super) fn start(settings: &ReactorSettings) -> Result<Self, StartError> {
        let cores = settings.cores.as_slice().to_vec();
        let places: Vec<Option<u32>> = match cores.is_empty() {
            true => vec![None],
            false => cores.iter().copied().map(Some).collect(),
        };
        // Without it, memory comes from wherever the kernel takes it.
        let topology = pollux_hugepages::discover(Path::new(SYSFS_ROOT)).ok();
        let mut threads = Vec::with_capacity(places.len());
        for (reactor, core) in (0..).zip(places) {
            let thread = ReactorThread::spawn(thread_settings(settings, reactor, core, topology.as_ref()))
                .map_err(|source| StartError::Reactor {
                    reactor,
                    core,
                    source,
                })?;
            threads.push(thread);
        }
        Ok(Self { threads, cores })
    }

    /// What other threads reach them with.
    pub(super) fn handles(&self) -> Vec<ReactorHandle> {
        self.threads.iter().map(ReactorThread::handle).collect()
    }

    /// The cores that they are pinned to; empty when they are not.
    pub(super) fn cores(&self) -> &[u32] {
        &self.cores
    }

    /// Waits until one of them ends by itself, and tells which.
    pub(super) async fn lost(&self) -> usize {
        let mut watches = JoinSet::new();
        for (index, reactor) in self.handles().into_iter().enumerate() {
            watches.spawn(async move {
                // A call that never ends is answered when its reactor does.
                let _stopped = reactor.call(pending::<()>).await;
                index
            });
        }
        match watches.join_next().await {
            Some(Ok(index)) => index,
            // Nothing to watch, or nobody to watch it: then there is no news.
            Some(Err(_)) | None => pending().await,
        }
    }

    /// Why a reactor ended by itself; to be asked once.
    pub(super) fn why_lost(&mut self, index: usize) -> String {
        if index >= self.threads.len() {
            return format!("reactor {index} ended");
        }
        match self.threads.remove(index).join() {
            Err(error) => error.to_string(),
            Ok(()) => format!("reactor {index} ended without a reason"),
        }
    }

    /// Stops all of them.
    pub(super) fn stop(self) {
        for thread in &self.threads {
            thread.stop();
        }
        for thread in self.threads {
            if let Err(error) = thread.join() {
                tracing::error!(%error, "a reactor ended by itself");
            }
        }
    }
}

fn thread_settings(
    settings: &ReactorSettings,
    reactor: u32,
    core: Option<u32>,
    topology: Option<&Topology>,
) -> Settings {
    let idle = match settings.idle {
        IdleSettings::Poll => IdlePolicy::Poll,
        IdleSettings::Adaptive => IdlePolicy::Adaptive {
            spin: Duration::from_micros(settings.spin_us),
        },
    };
    let mut buffers = PoolOptions {
        total_bytes: settings.memory.0 as usize,
        ..PoolOptions::default()
    };
    buffers.arena.numa_node = topology
        .filter(|topology| topology.nodes.len() > 1)
        .and_then(|topology| Some(topology.node_of_cpu(core?)?.id));
    Settings {
        id: ReactorId(reactor),
        core: core.map(|core| core as usize),
        idle,
        buffers,
        ..Settings::default()
    }
}

#[cfg(test)]
mod tests {
    use pollux_device::ByteSize;

    use super::*;
    use crate::settings::CoreList;

    fn settings(cores: impl IntoIterator<Item = u32>) -> ReactorSettings {
        ReactorSettings {
            cores: CoreList::new(cores).expect("each once"),
            memory: ByteSize(8 << 20),
            ..ReactorSettings::default()
        }
    }

    /// Cores that this process may use, up to two.
    fn usable() -> Vec<u32> {
        let set = rustix::thread::sched_getaffinity(None).expect("it can be asked for");
        (0..1024)
            .filter(|core| set.is_set(*core as usize))
            .take(2)
            .collect()
    }

    #[tokio::test]
    async fn a_reactor_that_panics_is_noticed_and_named() {
        let mut reactors = EngineReactors::start(&settings(usable())).expect("the cores are there");
        let last = reactors.handles().len() - 1;
        reactors.handles()[last]
            .spawn(|| async { panic!("on purpose") })
            .expect("it takes messages");
        let lost = reactors.lost().await;
        assert_eq!(lost, last);
        let reason = reactors.why_lost(lost);
        assert!(
            reason.contains(&format!("reactor {last} panicked: on purpose")),
            "{reason}"
        );
        reactors.stop();
    }

    #[test]
    fn without_cores_there_is_one_reactor() {
        let reactors = EngineReactors::start(&settings([])).expect("a reactor");
        assert_eq!(reactors.handles().len(), 1);
        assert!(reactors.cores().is_empty());
        reactors.stop();
    }

    #[test]
    fn a_core_that_is_not_there_is_named() {
        let cores = usable().into_iter().take(1).chain([9999]);
        let error = EngineReactors::start(&settings(cores))
            .err()
            .expect("no machine has it");
        let text = error.to_string();
        assert!(text.contains("reactor 1 on core 9999"), "{text}");
    }
}
