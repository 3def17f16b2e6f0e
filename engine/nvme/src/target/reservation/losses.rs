//! Which hosts have heard that writes which they were acknowledged may be gone.
//!
//! What was acknowledged and not flushed is gone with the caches of all that hold a namespace. A host that
//! has lived on does not see it: it connects anew, and takes for durable whatever a flush that succeeds
//! comes after. So a flush of each host fails first, and what it does then is what it does after any flush
//! that failed. SCSI has the like of it in unit attention conditions (SAM-6, 5.14).
//!
//! A host is known by its identifier. Whoever comes for the first time is told as well, since nobody knows
//! who wrote before; it has lost nothing by then that it could miss.

use super::table::HostId;

/// Hosts that are known to have heard; when there are more the one that has known it longest is forgotten,
/// and hears again.
pub(super) const TOLD_MAX: usize = 60;

/// The last loss of caches, and who has heard of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CacheLoss {
    /// Which one; 0 for none. Only later ones count.
    pub(super) number: u64,
    /// Those who have heard of it, the first one first.
    pub(super) told: Vec<HostId>,
}

impl CacheLoss {
    /// One that nobody has heard of.
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            told: Vec::new(),
        }
    }

    /// Whether there was one.
    pub(super) fn is_any(&self) -> bool {
        self.number > 0
    }

    /// Whether a host has not heard of it.
    pub(super) fn concerns(&self, host: &HostId) -> bool {
        self.is_any() && !self.told.contains(host)
    }

    /// A host has heard of it.
    pub(super) fn tell(&mut self, host: HostId) {
        if self.concerns(&host) {
            if self.told.len() >= TOLD_MAX {
                self.told.remove(0);
            }
            self.told.push(host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_has_heard_is_not_concerned_until_it_is_forgotten() {
        let none = CacheLoss::default();
        assert!(!none.is_any() && !none.concerns(&[1; 16]));
        let mut loss = CacheLoss::new(3);
        let hosts = 1..=TOLD_MAX as u8;
        for host in hosts.clone() {
            assert!(loss.concerns(&[host; 16]));
            loss.tell([host; 16]);
            loss.tell([host; 16]);
            assert!(!loss.concerns(&[host; 16]));
        }
        assert_eq!(loss.told.len(), TOLD_MAX);
        assert!(!hosts.clone().any(|host| loss.concerns(&[host; 16])));
        loss.tell([100; 16]);
        assert!(loss.concerns(&[1; 16]) && !loss.concerns(&[2; 16]) && !loss.concerns(&[100; 16]));
    }
}
