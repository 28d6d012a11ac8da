//! What of a case the reference recomputes: all of a small one, rows spread over a large one.

use std::ops::Range;

use crate::verify::generate::Rng;
use crate::{Device, HostTensor, Result, View};

/// Rows of a large case that are recomputed, at most.
pub(super) const ROWS: usize = 256;
/// Rows that lie next to each other: they share what a kernel does per tile, and differ in what it
/// does per row.
pub(super) const RUN: usize = 4;
/// Parts of a large case, which are judged one by one.
pub(super) const PARTS: usize = 8;
/// Multiply-adds of a case that is recomputed whole; the reference does it nine times.
pub(super) const WHOLE: usize = 1 << 27;
/// Seeds the choice.
const SEED: u64 = 9;

/// A source of choices: the same for every device.
pub(super) fn chooser() -> Rng {
    Rng::new(SEED)
}

/// All of the rows, as one run.
pub(super) fn all(rows: Range<usize>) -> Vec<Range<usize>> {
    std::iter::once(rows).collect()
}

/// About `count` of `rows` rows, in runs: one at the beginning, one at the end, the others anywhere
/// in equal parts of what lies between. All of them, where there are no more.
pub(super) fn spread(rng: &mut Rng, rows: Range<usize>, count: usize) -> Vec<Range<usize>> {
    let (first, total) = (rows.start, rows.len());
    if total <= count.max(RUN) {
        return all(rows);
    }
    let runs = (count / RUN).max(1);
    let place = |i: usize| first + total * i / runs;
    (0..runs)
        .map(|i| {
            let (from, room) = (place(i), place(i + 1) - place(i) - RUN);
            let start = match i {
                0 => from,
                _ if i + 1 == runs => from + room,
                _ => from + rng.below(room + 1),
            };
            start..start + RUN
        })
        .collect()
}

/// How many rows there are in runs.
pub(super) fn count(runs: &[Range<usize>]) -> usize {
    runs.iter().map(ExactSizeIterator::len).sum()
}

/// Host copies of runs of dimension 1, behind one another. The dimension before it has one entry.
pub(super) fn rows_of(device: &Device, view: View<'_>, runs: &[Range<usize>]) -> Result<HostTensor<'static>> {
    let (spec, mut bytes) = (view.spec(), Vec::new());
    for run in runs {
        bytes.extend_from_slice(&device.download(&view.clone().narrow(1, run.start, run.len())?)?.bytes()?);
    }
    let mut shape = spec.shape().to_vec();
    shape[1] = count(runs);
    HostTensor::from_bytes(spec.dtype(), &shape, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Tensor};

    #[test]
    fn rows_are_spread_from_the_first_to_the_last() {
        let runs = spread(&mut chooser(), 10..1010, 64);
        assert_eq!((runs.len(), count(&runs)), (16, 64));
        assert_eq!((runs[0].clone(), runs[15].clone()), (10..14, 1006..1010));
        for (i, run) in runs.iter().enumerate() {
            let part = 10 + 1000 * i / 16..10 + 1000 * (i + 1) / 16;
            assert!(part.start <= run.start && run.end <= part.end && run.len() == 4, "{run:?} in {part:?}");
        }
        assert_eq!(spread(&mut chooser(), 10..1010, 64), runs);
        assert_eq!(spread(&mut chooser(), 0..64, 64), all(0..64));
        assert_eq!(spread(&mut chooser(), 0..3, 1), all(0..3));
        assert_eq!(spread(&mut chooser(), 0..65, 64).len(), 16);
    }

    #[test]
    fn rows_lie_behind_one_another() {
        let device = Device::cpu();
        let numbers: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let host = HostTensor::from_slice(&numbers, &[1, 10, 2]).unwrap();
        let tensor = Tensor::upload(&device, &host, DType::F32).unwrap();
        let rows = rows_of(&device, tensor.view(), &[0..1, 7..9]).unwrap();
        assert_eq!((rows.shape(), rows.to_vec::<f32>().unwrap()), (&[1, 3, 2][..], vec![0., 1., 14., 15., 16., 17.]));
    }
}
