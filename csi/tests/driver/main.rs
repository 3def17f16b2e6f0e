//! The driver with a control plane, simulated engines, and a machine in memory.

mod common;

mod clones;
mod controller;
mod cut;
mod discovery;
mod groups;
mod health;
mod hold;
mod lost;
mod metadata;
mod node;
mod pods;
mod processes;
mod publishing;
mod sanity;
mod secrets;
mod traces;
