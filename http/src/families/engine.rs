//! What `pollux-engine` tells.

use super::families;

families! {
    BUILD: Gauge "pollux_engine_build_info" ["version"] "Always 1; the version is in the label.";
    START: Gauge "pollux_engine_start_time_seconds" [] "When the engine was started, since 1970 in UTC.";
    DRAINING: Gauge "pollux_engine_draining" [] "Whether the engine was told to stop, 1 or 0.";
    REACTOR_TURNS: Counter "pollux_engine_reactor_turns_total" ["reactor", "core"]
        "Turns of the loop of a reactor.";
    REACTOR_SECONDS: Counter "pollux_engine_reactor_seconds_total" ["reactor", "core", "state"]
        "Time that a reactor was busy, looked for work, or slept.";
    REACTOR_TASKS: Counter "pollux_engine_reactor_task_polls_total" ["reactor", "core"] "Polls of tasks.";
    REACTOR_MESSAGES: Counter "pollux_engine_reactor_messages_total" ["reactor", "core"]
        "Messages from other threads.";
    REACTOR_TIMERS: Counter "pollux_engine_reactor_timers_total" ["reactor", "core"]
        "Timers that came due.";
    REACTOR_EVENTS: Counter "pollux_engine_reactor_driver_events_total" ["reactor", "core"]
        "Completions of the kernel and of drives.";
    REACTOR_RUN_QUEUE: Gauge "pollux_engine_reactor_run_queue_depth_max" ["reactor", "core"]
        "The longest run queue that was seen.";
    REACTOR_MAILBOX: Gauge "pollux_engine_reactor_mailbox_depth_max" ["reactor", "core"]
        "The longest mailbox that was seen.";
    REACTOR_CONNECTIONS: Gauge "pollux_engine_reactor_connections" ["reactor", "core"]
        "Connections of hosts.";
    VOLUME_SIZE: Gauge "pollux_engine_volume_size_bytes" ["volume"] "Bytes of a volume that is served.";
    VOLUME_OPERATIONS: Counter "pollux_engine_volume_operations_total" ["volume", "operation"]
        "Operations of hosts on a volume that were done.";
    VOLUME_BYTES: Counter "pollux_engine_volume_bytes_total" ["volume", "operation"]
        "Bytes that hosts moved.";
    VOLUME_ERRORS: Counter "pollux_engine_volume_errors_total" ["volume", "operation"]
        "Operations on a volume that failed.";
    VOLUME_SECONDS: Histogram "pollux_engine_volume_operation_seconds" ["volume", "operation"]
        "How long operations on a volume took, inside this engine.";
    VOLUME_THROTTLED: Counter "pollux_engine_volume_throttled_operations_total" ["volume"]
        "Operations of hosts that were held, since a limit of the volume was reached.";
    VOLUME_THROTTLED_SECONDS: Counter "pollux_engine_volume_throttled_seconds_total" ["volume"]
        "The time for which operations were held, altogether.";
    VOLUME_HELD: Gauge "pollux_engine_volume_held_operations" ["volume"] "Operations that are held now.";
    REPLICA_OPERATIONS: Counter "pollux_engine_replica_operations_total" ["replica", "operation"]
        "Operations of targets on a replica that were done.";
    REPLICA_BYTES: Counter "pollux_engine_replica_bytes_total" ["replica", "operation"]
        "Bytes that targets moved.";
    REPLICA_ERRORS: Counter "pollux_engine_replica_errors_total" ["replica", "operation"]
        "Operations on a replica that failed.";
    REPLICA_SECONDS: Histogram "pollux_engine_replica_operation_seconds" ["replica", "operation"]
        "How long operations on a replica took, inside this engine.";
    MIRROR_SLOW: Gauge "pollux_engine_mirror_slow_replicas" ["volume"]
        "Replicas of a volume that are far slower than others, or out of it for that.";
    MIRROR_SLOW_OUT: Counter "pollux_engine_mirror_slow_replicas_taken_out_total" ["volume"]
        "How often a replica was taken out since it was far slower than others.";
    MIRROR_MISSED: Gauge "pollux_engine_mirror_missed_bytes" ["volume"]
        "Bytes of the regions that replicas of a volume miss, added up.";
    MIRROR_COPIED: Counter "pollux_engine_mirror_copied_bytes_total" ["volume"]
        "Bytes that were copied to replicas since the volume was opened.";
    MIRROR_LEFT: Gauge "pollux_engine_mirror_copy_seconds_left" ["volume"]
        "How long a copy will take at its present speed.";
    MIRROR_ROLL_BACK_BYTES: Gauge "pollux_engine_mirror_roll_back_bytes_left" ["volume"]
        "Bytes that a volume that goes back to a snapshot has still to compare with it.";
    MIRROR_ROLL_BACK_LEFT: Gauge "pollux_engine_mirror_roll_back_seconds_left" ["volume"]
        "How long going back to a snapshot will take at its present speed.";
    DRIVE_OPERATIONS: Counter "pollux_engine_drive_operations_total" ["drive", "operation"]
        "Operations on a drive that were done.";
    DRIVE_BYTES: Counter "pollux_engine_drive_bytes_total" ["drive", "operation"] "Bytes that were moved.";
    DRIVE_ERRORS: Counter "pollux_engine_drive_errors_total" ["drive", "operation"]
        "Operations on a drive that failed.";
    DRIVE_SECONDS: Histogram "pollux_engine_drive_operation_seconds" ["drive", "operation"]
        "How long operations on a drive took.";
    DRIVE_MEDIA_ERRORS: Counter "pollux_engine_drive_media_errors_total" ["drive"]
        "Media errors that a drive tells of.";
    DRIVE_WEAR: Gauge "pollux_engine_drive_wear_ratio" ["drive"]
        "Wear, as a part of the endurance that a drive is rated for; may exceed 1.";
    DRIVE_TEMPERATURE: Gauge "pollux_engine_drive_temperature_celsius" ["drive"]
        "Temperature, where a drive tells it.";
    POOL_CAPACITY: Gauge "pollux_engine_pool_capacity_bytes" ["pool"] "Bytes that a pool has for data.";
    POOL_FREE: Gauge "pollux_engine_pool_free_bytes" ["pool"] "Bytes of a pool that are free.";
    POOL_VOLUMES: Gauge "pollux_engine_pool_volumes" ["pool"] "Volumes in a pool.";
}
