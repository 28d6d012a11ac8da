//! The CPU backend against the reference: seeded random configurations, bitwise properties, guard bands.

mod attention;
mod rowwise;
mod support;
