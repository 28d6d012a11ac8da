//! Keeps the small programs that once corrupted memory, aborted or never ended: each is a test now, one file per area.
#![forbid(unsafe_code)]

mod sizes;
