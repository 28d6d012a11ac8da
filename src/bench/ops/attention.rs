//! Benchmarks of `attention`.

use serde_json::{Value, json};

use super::{Benchmark, Window};
use crate::bench::call::Input;
use crate::bench::sample;
use crate::bench::visited::{self, Blocks, Visited};
use crate::ops::{Each, Visibility};
use crate::verify::cases::AttentionCase;
use crate::verify::cases::attention::{Exist, Phi, Rule, Values, most};
use crate::verify::cases::declare::Parameters;
use crate::{Device, HostTensor, Result, View};

/// One problem of no rows over no keys; all of them would be visible.
pub(in crate::bench) fn plain() -> AttentionCase {
    // With seed 3, prefix_causal has no offset.
    AttentionCase { values: Values::Uniform, ..AttentionCase::choose(&[], 3) }
}

/// Text over media at equal distances, which rows see by φ or by `bits`. Each medium has `tiles`
/// bits; a single medium alone may have several.
pub(in crate::bench) fn over_media(
    bits: bool,
    batch: usize,
    rows: usize,
    media: usize,
    keys_per_media: usize,
    tiles: usize,
) -> AttentionCase {
    let rule = if bits { Rule::MediaBits } else { Rule::SameMedia };
    let phi = if tiles > 1 { Phi::Tiles } else { Phi::Spread };
    AttentionCase { batch, q: rows, k: media * keys_per_media, rule, media: media * tiles, phi, ..plain() }
}

/// The visibility rule and its sizes.
pub(in crate::bench) fn rule_json(case: &AttentionCase) -> Value {
    let mut json = json!({ "rule": case.rule.to_string() });
    let media = if case.phi == Phi::Tiles { 1 } else { case.media };
    let per_media = match case.rule {
        Rule::All => return json,
        Rule::PrefixCausal => {
            json["prefix"] = media.into();
            return json;
        }
        Rule::SameMedia | Rule::PrecedingMedia => "keys_per_media",
        Rule::MediaBits => "keys_per_block",
    };
    (json["media"], json[per_media]) = (media.into(), case.keys_per_media().into());
    json
}

/// The visibility of a case as an operand of `attention` or of a gated block.
pub(in crate::bench) fn upload(case: &AttentionCase, device: &Device) -> Result<Visibility<Input>> {
    let visibility = case.visibility(case.batch, case.q)?;
    visibility.try_map(&mut Each(|_, host: HostTensor<'static>| Input::new(device, &host, host.dtype())))
}

/// Blocks of keys that a kernel visits.
fn visited(case: &AttentionCase, blocks: Blocks) -> Result<Visited> {
    // Lengths shorten the joint axis at its end: of a first segment only where it is alone.
    let lengths = match (case.keys, case.keys2) {
        (Exist::Most, _) if case.second() == 0 => Some(most(case.batch, case.k)),
        (_, Exist::Most) => {
            Some(most(case.batch, case.second()).into_iter().map(|n| n + case.k as u32).collect::<Vec<u32>>())
        }
        _ => None,
    };
    let words =
        |_: &'static str, host: HostTensor<'static>| Ok(bytemuck::pod_collect_to_vec::<u8, u32>(&host.bytes()?));
    let seen = case.visibility(case.batch, case.q)?.try_map(&mut Each(words))?;
    Ok(visited::visited(&seen, lengths.as_deref(), case.batch, case.q, case.k + case.second(), blocks))
}

/// Keys that no row sees, of all problems: their K and V are not read.
pub(in crate::bench) fn unread(case: &AttentionCase) -> Result<usize> {
    // Lengths of a first segment before a second one leave a gap in the joint axis, which all rows
    // would see.
    let gap = match (case.keys, case.rule) {
        (Exist::Most, Rule::All) if case.second() > 0 => {
            most(case.batch, case.k).into_iter().map(|n| case.k - n as usize).sum()
        }
        _ => 0,
    };
    // All rows of a problem are one tile, and each key a block of its own.
    let Visited { visited, total } = visited(case, Blocks { rows: case.q, keys: 1 })?;
    Ok(gap + total - visited)
}

impl Benchmark for AttentionCase {
    fn sizes(&self) -> Value {
        let lengths = match (self.keys, self.keys2) {
            (Exist::Most, _) => "first".into(),
            (_, Exist::Most) => "second".into(),
            _ => Value::Null,
        };
        json!({
            "batch": self.batch, "rows": self.q, "heads": self.h.q, "kv_heads": self.h.kv, "head_dim": self.d,
            "keys": [self.k, self.second()], "lengths": lengths, "visibility": rule_json(self),
        })
    }

    /// What the reference recomputes. All of a small case; else rows of eight problems, or of
    /// eighths of the rows where there are fewer problems. Each part has other heads, so that all
    /// of them come up.
    fn windows(&self) -> Vec<Window> {
        let (batch, rows, kv_heads) = (self.batch, self.q, self.h.kv);
        let seen = if self.rule == Rule::SameMedia { self.keys_per_media() } else { self.k + self.second() };
        // Multiply-adds of a row with one K/V head and its queries.
        let each = 2 * seen * self.h.q / kv_heads * self.d;
        // Rows that see what is before them are counted from the first one.
        if batch * rows * kv_heads * each <= sample::WHOLE || self.rule == Rule::PrefixCausal {
            let whole = |entry| Window { entry, rows: sample::all(0..rows), columns: 0..kv_heads };
            return (0..batch).map(whole).collect();
        }
        let width = kv_heads.div_ceil(sample::PARTS);
        // Long keys are expensive: fewer rows of them.
        let affordable = 2 * sample::WHOLE / (sample::PARTS * width * each);
        let count = affordable.clamp(2 * sample::RUN, sample::ROWS / sample::PARTS);
        let last = sample::PARTS - 1;
        let mut rng = sample::chooser();
        (0..sample::PARTS)
            .map(|i| {
                let few = batch < sample::PARTS && rows >= sample::PARTS * sample::RUN;
                let range = match few {
                    true => rows * i / sample::PARTS..rows * (i + 1) / sample::PARTS,
                    false => 0..rows,
                };
                let first = i * (kv_heads - width) / last;
                Window {
                    entry: i * (batch - 1) / last,
                    rows: sample::spread(&mut rng, range, count),
                    columns: first..first + width,
                }
            })
            .collect()
    }

    fn part<'v>(&self, window: &Window, name: &str, operand: View<'v>) -> Result<(View<'v>, bool)> {
        let (first, n, group) = (window.columns.start, window.columns.len(), self.h.q / self.h.kv);
        let operand = operand.narrow(0, window.entry, 1)?;
        Ok(match name {
            "q" | "out" => (operand.narrow(2, first * group, n * group)?, true),
            "media_index" | "media_bits" => (operand, true),
            "first.k" | "first.v" | "second.k" | "second.v" => (operand.narrow(2, first, n)?, false),
            _ => (operand, false),
        })
    }

    fn visited(&self) -> Option<Visited> {
        visited(self, Blocks::STANDARD).ok()
    }

    fn unread(&self) -> Result<usize> {
        Ok(unread(self)? * 2 * self.h.kv * self.d * self.dtype.dtype().size())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::verify::cases::attention::{Heads, Second};

    /// 8 problems of 2048 rows over 8 media of 64 keys.
    fn large() -> AttentionCase {
        AttentionCase { h: Heads { q: 24, kv: 12 }, d: 128, ..over_media(false, 8, 2048, 8, 64, 1) }
    }

    #[test]
    fn keys_that_no_row_sees() {
        // 8 problems of 512 keys; of problem b, b sixty-fourths of a quarter of them are padding.
        let padding = (0..8).map(|b| b * 512 / 32).sum::<usize>();
        let all = || AttentionCase { rule: Rule::All, ..large() };
        let keys = |case: AttentionCase| unread(&case).unwrap();
        assert_eq!(keys(AttentionCase { keys: Exist::Most, ..all() }), padding);
        assert_eq!(keys(AttentionCase { keys: Exist::Most, k2: Second(Some(64)), ..all() }), padding);
        assert_eq!(keys(AttentionCase { keys2: Exist::Most, k: 64, k2: Second(Some(512)), ..all() }), padding);
        assert_eq!(keys(all()), 0);
        // One row sees the last of 8 media, by φ or by bits; every row the tiles of one medium.
        for bits in [false, true] {
            assert_eq!(keys(over_media(bits, 8, 1, 8, 64, 1)), 8 * (512 - 64), "{bits}");
            assert_eq!(keys(over_media(bits, 8, 2048, 8, 64, 1)), 0, "{bits}");
        }
        assert_eq!(keys(over_media(true, 8, 1, 1, 512, 4)), 0);
        let causal = AttentionCase { q: 32, rule: Rule::PrefixCausal, media: 40, ..large() };
        assert_eq!(causal.unread().unwrap(), 8 * (512 - 40) * 2 * 12 * 128 * 4);
    }

    #[test]
    fn windows_reach_every_head_and_both_ends() {
        let of = |case: AttentionCase| -> Vec<(usize, usize, usize, Range<usize>)> {
            let window = |w: Window| (w.entry, w.rows[0].start, w.rows[w.rows.len() - 1].end, w.columns);
            case.windows().into_iter().map(window).collect()
        };
        let heads = [0..2, 1..3, 2..4, 4..6, 5..7, 7..9, 8..10, 10..12];
        let problems: Vec<_> = (0..8).map(|i| (i, 0, 2048, heads[i].clone())).collect();
        assert_eq!(of(large()), problems);
        // One problem: eighths of its rows.
        let rows: Vec<_> = (0..8).map(|i| (0, 256 * i, 256 * (i + 1), heads[i].clone())).collect();
        assert_eq!(of(AttentionCase { batch: 1, ..large() }), rows);
        let count = |case: AttentionCase| case.windows().iter().map(|w| sample::count(&w.rows)).sum::<usize>();
        assert_eq!(count(large()), 256);
        // 6404 keys, all of them seen: 8 rows of each window.
        assert_eq!(count(AttentionCase { k: 6404, rule: Rule::All, ..large() }), 64);
        let small = AttentionCase { batch: 2, q: 40, ..large() };
        assert_eq!(of(small), [(0, 0, 40, 0..12), (1, 0, 40, 0..12)]);
    }
}
