//! Validation.
pub mod classes;
pub mod fixture;
pub use fixture::{Fixture, Mask};
