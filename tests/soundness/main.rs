//! Programs that once read, wrote, or waited where they should not, and what they get now.
//! SECURITY.md says what is promised.

#[cfg(feature = "cuda")]
mod cuda;
mod description;
mod overlap;
mod sizes;
