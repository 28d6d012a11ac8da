//! 16-bit results share words: two workgroups that write the halves of one do not undo each other.

use xattn::ops::{GatedResidual, GatedResidualArgs, Source};
use xattn::{DType, Dispatch, Tensor, WgpuOptions};

use crate::support::{device, integers, read, tensor};

/// Two batch entries of rows of one column, whose results take turns in memory: each word is shared
/// by a workgroup of the first half of the grid and one of the second half, which two threads of an
/// adapter walk through side by side.
#[test]
fn workgroups_that_share_a_word_each_write_their_half() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let rows = 1 << 16;
    let (x, y) = (integers(2 * rows, 1), integers(2 * rows, 2));
    let gate = tensor(&device, &[f32::INFINITY], &[1], DType::F32);
    for dtype in [DType::BF16, DType::F16] {
        let [x_rows, y_rows] = [&x, &y].map(|values| tensor(&device, values, &[2, rows, 1], dtype));
        for _ in 0..200 {
            let mut memory = Tensor::zeros(&device, dtype, &[rows, 2, 1]).unwrap();
            let out = memory.view_mut().transpose(0, 1).unwrap();
            let args = GatedResidualArgs::new(Source::From(x_rows.view()), y_rows.view(), gate.view(), out);
            GatedResidual.run(&device, args).unwrap();
            // Sums of integers, since tanh(∞) = 1.
            let expected = |i: usize| x[i % 2 * rows + i / 2] + y[i % 2 * rows + i / 2];
            let wrong = read(&device, &memory).into_iter().enumerate().find(|&(i, got)| got != expected(i));
            assert!(wrong.is_none(), "{dtype}: {wrong:?}, expected {:?}", wrong.map(|(i, _)| expected(i)));
        }
    }
}
