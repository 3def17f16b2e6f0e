//! The control plane with simulated engines, in virtual time.

mod calls;
mod common;
mod deletion;
mod drained;
mod gateway;
#[path = "../shared/https.rs"]
mod https;
mod killed;
mod lost;
mod manual;
mod manual_run;
mod previews;
mod programs;
mod rebalance;
mod reconcile;
mod recover;
mod reservations;
mod restarted;
mod roll_backs;
mod scale;
mod secrets;
mod together;
mod trust;
mod unreadable;
mod waiting;
