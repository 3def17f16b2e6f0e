//! The engine as a process, seen from outside: one program, so that what all share is compiled once.

#[path = "../common/mod.rs"]
mod common;
mod control;
mod doctor;
mod durability;
mod life;
mod pool_commands;
mod pool_crashes;
mod pool_manual;
mod pool_served;
mod replicas;
mod start_errors;
mod telemetry;
