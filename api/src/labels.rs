//! Labels of volumes and snapshots that one part of Pollux sets and another one reads.

/// The claim of Kubernetes that a volume is for, as the CSI driver was told.
pub const CLAIM: &str = "csi.pollux.io/claim";

/// The namespace of that claim, or of a snapshot.
pub const NAMESPACE: &str = "csi.pollux.io/namespace";

/// The pods that use a volume, with commas between, as the CSI driver sees them.
pub const POD: &str = "csi.pollux.io/pod";

/// What those pods belong to, such as `StatefulSet/web`, with commas between.
pub const OWNER: &str = "csi.pollux.io/owner";
