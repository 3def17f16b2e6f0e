//! What `pollux-control` tells: of itself, and of the cluster as it is on record.

use super::families;

families! {
    BUILD: Gauge "pollux_control_build_info" ["version"] "Always 1; the version is in the label.";
    LEADER: Gauge "pollux_control_leader" [] "Whether this instance leads, 1 or 0.";
    TERM: Gauge "pollux_control_term" [] "The term of the last lead of this instance, 0 before the first.";
    REVISION: Gauge "pollux_control_store_revision" [] "The revision of the store.";
    RESTORED: Gauge "pollux_control_records_restored" []
        "1 while nothing is done by the records: they come from a backup, and no recovery was committed.";
    PASSES: Counter "pollux_control_passes_total" [] "Passes of planning.";
    PASS_SECONDS: Histogram "pollux_control_pass_seconds" [] "How long passes took, with what they did.";
    STEPS: Counter "pollux_control_steps_total" ["kind"]
        "Steps that were planned: commits of the store, and commands for engines.";
    COMMANDS_FAILED: Counter "pollux_control_commands_failed_total" ["reason"]
        "Commands that engines refused, or did not answer in time.";
    CALLS: Counter "pollux_control_calls_total" ["interface", "method", "code"]
        "Calls that were answered, by gRPC method and code, or by HTTP method and status.";
    CALL_SECONDS: Histogram "pollux_control_call_seconds" ["interface"]
        "How long calls took to be answered; of watches, until they began.";
    NODE_STATE: Gauge "pollux_node_state" ["node", "zone", "state"]
        "1 for the state that a node has, 0 for the others.";
    NODE_REPORT_AGE: Gauge "pollux_node_report_age_seconds" ["node"]
        "How old the newest report of a node is.";
    POOL_STATE: Gauge "pollux_pool_state" ["pool", "node", "state"]
        "1 for the state that a pool has, 0 for the others.";
    POOL_CAPACITY: Gauge "pollux_pool_capacity_bytes" ["pool", "node"] "Bytes that a pool has for data.";
    POOL_USED: Gauge "pollux_pool_used_bytes" ["pool", "node"] "Bytes of a pool that are used.";
    POOL_PROVISIONED: Gauge "pollux_pool_provisioned_bytes" ["pool", "node"]
        "The sizes of all replicas in a pool.";
    POOL_REPLICAS: Gauge "pollux_pool_replicas" ["pool", "node"] "Replicas in a pool.";
    VOLUMES: Gauge "pollux_volumes" ["state"] "Volumes in a state.";
    VOLUME_STATE: Gauge "pollux_volume_state" ["volume", "state"]
        "1 for the state that a volume has; other states are left out.";
    VOLUME_SIZE: Gauge "pollux_volume_size_bytes" ["volume"] "Bytes that hosts see.";
    VOLUME_REPLICAS: Gauge "pollux_volume_replicas" ["volume"] "Replicas that a volume has.";
    VOLUME_REPLICAS_IN_SYNC: Gauge "pollux_volume_replicas_in_sync" ["volume"]
        "Replicas of a volume that are in sync.";
    VOLUME_REPLICAS_WANTED: Gauge "pollux_volume_replicas_wanted" ["volume"]
        "Replicas that a volume is to have.";
    VOLUME_EPOCH: Counter "pollux_volume_targets_total" ["volume"]
        "Targets that a volume has had: each failover is one more.";
    VOLUME_UNREADABLE: Gauge "pollux_volume_unreadable_blocks" ["volume"]
        "Blocks of a volume that no replica in sync can read, at least; they have to be written anew.";
    REPLICA_STATE: Gauge "pollux_replica_state" ["volume", "replica", "node", "pool", "state"]
        "1 for the state that a replica has; other states are left out.";
    SNAPSHOTS: Gauge "pollux_snapshots" ["state"] "Snapshots in a state.";
    REMOVALS: Gauge "pollux_removals_pending" ["node"]
        "Things that are to be removed from a node and are not yet.";
}
