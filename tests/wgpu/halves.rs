//! Results of 16 bits whose rows end within a word: its halves are written by different workgroups, and neither undoes the other.

use xattn::ops::{Norm, NormArgs, NormKind, Source};
use xattn::{DType, Device, Dispatch, Tensor, WgpuOptions};

use crate::support::{device, integers, read, tensor};

/// Rows of 257 columns, a workgroup each, one behind the other or each on a word of its own.
fn norm(device: &Device, rows: usize, dtype: DType, apart: bool) -> Vec<u32> {
    let (width, stride) = (257, if apart { 258 } else { 257 });
    let x = tensor(device, &integers(rows * width, 1), &[1, rows, 1, width], DType::F32);
    let mut out = Tensor::zeros(device, dtype, &[1, rows, 1, stride]).unwrap();
    let narrow = out.view_mut().narrow(3, 0, width).unwrap();
    Norm { kind: NormKind::Rms, eps: 1e-5 }
        .run(device, NormArgs::new(Source::From(x.view()), None, None, narrow))
        .unwrap();
    let all = read(device, &out);
    all.chunks(stride).flat_map(|row| row[..width].iter().map(|x| x.to_bits())).collect()
}

#[test]
fn workgroups_that_share_a_word_each_write_their_half() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    for dtype in [DType::BF16, DType::F16] {
        let expected = norm(&device, 3000, dtype, true);
        for _ in 0..10 {
            let got = norm(&device, 3000, dtype, false);
            let wrong = (0..got.len()).find(|&i| got[i] != expected[i]);
            assert!(wrong.is_none(), "{dtype}: element {wrong:?} of 3000 rows of 257");
        }
    }
}
