//! A written operand shares no element with another one, unless the op's contract says so.

use xattn::ops::*;
use xattn::{DType, Device, Dispatch, Result, Spec, View, ViewMut};

/// Memory that several operands name, as an engine or C does.
struct Shared(Vec<f32>);

impl Shared {
    fn new(n: usize) -> Self {
        Shared((0..n).map(|i| (i % 7) as f32 - 3.0).collect())
    }

    fn region(&mut self, at: usize) -> (*mut u8, usize) {
        (self.0[at..].as_mut_ptr().cast(), 4 * (self.0.len() - at))
    }

    fn read(&mut self, at: usize, shape: &[usize], strides: &[usize]) -> View<'static> {
        let (address, bytes) = self.region(at);
        let spec = Spec::strided(DType::F32, shape, strides).unwrap();
        // SAFETY: the memory lives until the test ends, and calls that would access it in conflict
        // are refused.
        unsafe { View::from_raw_host(spec, address, bytes) }.unwrap()
    }

    fn write(&mut self, at: usize, shape: &[usize], strides: &[usize]) -> ViewMut<'static> {
        let (address, bytes) = self.region(at);
        let spec = Spec::strided(DType::F32, shape, strides).unwrap();
        // SAFETY: as for `read`.
        unsafe { ViewMut::from_raw_host(spec, address, bytes) }.unwrap()
    }
}

#[track_caller]
fn said<O: Dispatch>(op: &O, args: impl Fn() -> O::Args<View<'static>, ViewMut<'static>>) -> String {
    let said = [Device::cpu(), Device::reference()].map(|device| op.run(&device, args()));
    let text = |result: &Result<()>| result.as_ref().map_or_else(ToString::to_string, |()| "computed".into());
    assert_eq!(text(&said[0]), text(&said[1]));
    text(&said[0])
}

#[test]
fn linear_does_not_write_over_what_it_reads() {
    let w = [0.5f32; 16];
    let run = |out_at: usize| {
        said(&Linear::default(), || {
            let shared: &'static mut Shared = Box::leak(Box::new(Shared::new(64)));
            let (x, out) = (shared.read(0, &[1, 4, 4], &[16, 4, 1]), shared.write(out_at, &[1, 4, 4], &[16, 4, 1]));
            LinearArgs::new(x, Matrix::View(View::new(w.to_vec().leak(), &[4, 4]).unwrap()), out)
        })
    };
    let refusal =
        "linear: out: expected no element in common with x, got f32[1, 4, 4] and f32[1, 4, 4] over the same memory";
    assert_eq!(run(0), refusal);
    assert_eq!(run(15), refusal);
    assert_eq!(run(16), "computed");
}

fn packed_attention(out_at: usize, strides: [usize; 4]) -> String {
    said(&Attention::for_head_dim(8), || {
        // Two batch entries of three rows: q | k | v | out, each of two heads of 8.
        let shared: &'static mut Shared = Box::leak(Box::new(Shared::new(2 * 3 * 64 + 64)));
        let shape = [2, 3, 2, 8];
        let block = |shared: &mut Shared, i: usize| shared.read(16 * i, &shape, &[192, 64, 8, 1]);
        let (q, k, v) = (block(shared, 0), block(shared, 1), block(shared, 2));
        AttentionArgs::new(q, k, v, shared.write(out_at, &shape, &strides))
    })
}

#[test]
fn blocks_of_columns_of_one_packed_tensor_may_interleave() {
    let strides = [192, 64, 8, 1];
    assert_eq!(packed_attention(48, strides), "computed");
    for (at, with) in [(0, "q"), (16, "first.k"), (32, "first.v"), (40, "first.v")] {
        let refusal = format!("attention: out: expected no element in common with {with}, got ");
        let said = packed_attention(at, strides);
        assert!(said.starts_with(&refusal), "{at}: {said}");
    }
    // From column 56 on, the second head is the next row's q.
    assert!(packed_attention(56, strides).contains("no element in common with q"));
}

/// The same result as with an output of its own.
#[test]
fn what_interleaves_is_computed_right() {
    let device = Device::cpu();
    let mut shared = Shared::new(2 * 3 * 64);
    let alone = shared.0.clone();
    let shape = [2, 3, 2, 8];
    let strides = [192, 64, 8, 1];
    let [q, k, v] = [0, 16, 32].map(|at| shared.read(at, &shape, &strides));
    let out = shared.write(48, &shape, &strides);
    Attention::for_head_dim(8).run(&device, AttentionArgs::new(q, k, v, out)).unwrap();
    let [q, k, v] = [0, 16, 32].map(|at| View::strided(&alone[at..], &shape, &strides).unwrap());
    let mut own = [0f32; 2 * 3 * 2 * 8];
    let args = AttentionArgs::new(q, k, v, ViewMut::new(&mut own, &shape).unwrap());
    Attention::for_head_dim(8).run(&device, args).unwrap();
    for (row, want) in own.chunks(16).enumerate() {
        assert_eq!(shared.0[row * 64 + 48..][..16], *want, "row {row}");
        assert_eq!(shared.0[row * 64..][..48], alone[row * 64..][..48], "row {row}");
    }
}

#[test]
fn k_and_v_as_halves_of_a_row_beside_the_output() {
    let said = said(&Attention::for_head_dim(4), || {
        let shared: &'static mut Shared = Box::leak(Box::new(Shared::new(5 * 12)));
        let (k, v) = (shared.read(0, &[1, 5, 1, 4], &[60, 12, 4, 1]), shared.read(4, &[1, 5, 1, 4], &[60, 12, 4, 1]));
        let q = View::new(vec![1f32; 20].leak(), &[1, 5, 1, 4]).unwrap();
        AttentionArgs::new(q, k, v, shared.write(8, &[1, 5, 1, 4], &[60, 12, 4, 1]))
    });
    assert_eq!(said, "computed");
}

#[test]
fn strides_that_cannot_be_told_apart_are_refused() {
    // Rows of out are 6 apart, those of y 4: they share no element, which no stride alone shows.
    let said = said(&GatedResidual, || {
        let shared: &'static mut Shared = Box::leak(Box::new(Shared::new(64)));
        let y = shared.read(0, &[1, 9, 1], &[36, 4, 1]);
        let out = shared.write(1, &[1, 9, 1], &[54, 6, 1]);
        GatedResidualArgs::new(Source::InPlace, y, View::new(vec![1f32].leak(), &[1]).unwrap(), out)
    });
    assert_eq!(
        said,
        "gated_residual: out: expected no element in common with y, \
         got f32[1, 9, 1] strides [54, 6, 1] and f32[1, 9, 1] strides [36, 4, 1] over the same memory"
    );
}

#[test]
fn two_outputs_share_nothing() {
    let said = said(&Attention::for_head_dim(4), || {
        let shared: &'static mut Shared = Box::leak(Box::new(Shared::new(8)));
        let one = |n| View::new(vec![1f32; n].leak(), &[1, n / 4, 1, 4]).unwrap();
        let mut args = AttentionArgs::new(one(4), one(8), one(8), shared.write(0, &[1, 1, 1, 4], &[4, 4, 4, 1]));
        args.log_sum_exp = Some(shared.write(3, &[1, 1, 1], &[1, 1, 1]));
        args
    });
    assert_eq!(
        said,
        "attention: out: expected no element in common with log_sum_exp, got f32[1, 1, 1, 4] and f32[1, 1, 1] over the same memory"
    );
}

#[test]
fn the_carry_may_be_written_where_it_was_read() {
    let run = |out_at: usize, out_stride: usize| {
        said(&MediaIndex::default(), || {
            let carry: &'static mut [i32] = vec![3i32, 5, 0, 0].leak();
            let spec = |stride| Spec::strided(DType::I32, &[2], &[stride]).unwrap();
            // SAFETY: the memory is leaked; calls that would access it in conflict are refused.
            let (carry_in, carry_out) = unsafe {
                let bytes = 16 - 4 * out_at;
                (
                    View::from_raw_host(spec(1), carry.as_mut_ptr().cast(), 16).unwrap(),
                    ViewMut::from_raw_host(spec(out_stride), carry[out_at..].as_mut_ptr().cast(), bytes).unwrap(),
                )
            };
            let locations = View::new(vec![1u32; 2].leak(), &[2, 1]).unwrap();
            let phi = ViewMut::new(vec![0i32; 2].leak(), &[2, 1]).unwrap();
            let mut args = MediaIndexArgs::new(MediaSource::Locations(locations), phi);
            (args.carry_in, args.carry_out) = (Some(carry_in), Some(carry_out));
            args
        })
    };
    assert_eq!(run(0, 1), "computed");
    assert_eq!(run(2, 1), "computed");
    let refusal = "media_index: carry_out: expected no element in common with carry_in, got i32[2]";
    assert!(run(1, 1).starts_with(refusal) && run(0, 2).starts_with(refusal), "{} {}", run(1, 1), run(0, 2));
}
