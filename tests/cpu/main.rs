//! The CPU backend against the reference: seeded random configurations, bitwise properties,
//! operands and workspaces in blocks of exactly their size.

mod attention;
mod block;
mod f64;
mod guards;
#[path = "../hostile_values/plans.rs"]
mod hostile_plans;
mod plans;
mod ragged;
mod rowwise;
mod support;
mod views;
