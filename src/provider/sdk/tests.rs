//! Replicas over an in-memory store, driven through the [`Provider`](crate::provider::Provider) trait as a coordinator would.

mod conflicts;
mod convergence;
mod crashes;
mod filters;
mod harness;
mod life_cycle;
mod memory;
mod rings;
mod safety;
mod unit_filters;
mod unit_histories;
mod units;
