//! Cases of `attention` with few rows and long keys, where backends split the keys (split-K): too
//! large for a covering selection.

use super::attention::{AttentionCase, Batching, Empty, Exist, Extra, Phi, Rule, Second, Values, heads};
use super::declare::{Layout, Real, Side};

/// The cases. Some in f32 are small enough for a browser.
pub(crate) fn long() -> Vec<AttentionCase> {
    let step = AttentionCase {
        batch: 2,
        q: 1,
        k: 1500,
        k2: Second(None),
        h: heads(4, 2),
        d: 64,
        rule: Rule::All,
        media: 5,
        phi: Phi::Any,
        keys: Exist::Lengths,
        keys2: Exist::All,
        batching: Batching::Dense,
        empty: Empty::Zero,
        extra: Extra::Both,
        values: Values::Normal,
        layout: Layout::Gapless,
        dtype: Real::F32,
        out: Side::Same,
        seed: 2000,
    };
    // Few rows, one row of media, rows without keys; over 8 rows; other rules, dtypes, layouts.
    vec![
        AttentionCase { d: 24, batching: Batching::Slots, empty: Empty::AttendAll, ..step.clone() },
        AttentionCase { d: 8, q: 2, k: 300, rule: Rule::SameMedia, empty: Empty::Mixed, seed: 2001, ..step.clone() },
        AttentionCase {
            batch: 1,
            q: 9,
            k: 1100,
            h: heads(1, 1),
            d: 24,
            empty: Empty::Uniform,
            seed: 2002,
            ..step.clone()
        },
        AttentionCase {
            q: 2,
            k: 700,
            k2: Second(Some(400)),
            rule: Rule::PrecedingMedia,
            keys: Exist::Bits,
            values: Values::Poison,
            layout: Layout::Padded,
            seed: 2003,
            ..step.clone()
        },
        AttentionCase {
            k: 2304,
            rule: Rule::MediaBits,
            empty: Empty::AttendAll,
            values: Values::Sharp,
            dtype: Real::BF16,
            out: Side::F32,
            seed: 2004,
            ..step.clone()
        },
        AttentionCase {
            q: 16,
            k: 1030,
            k2: Second(Some(16)),
            h: heads(2, 2),
            d: 16,
            rule: Rule::PrefixCausal,
            dtype: Real::F16,
            seed: 2005,
            ..step.clone()
        },
        AttentionCase {
            batch: 1,
            k: 2048,
            h: heads(1, 1),
            d: 8,
            values: Values::Exact,
            keys: Exist::All,
            seed: 2006,
            ..step
        },
    ]
}
