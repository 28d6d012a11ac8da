//! Named benchmark cases with published shapes, each checked before it is timed.

pub mod weights;

pub use weights::RandomWeights;
