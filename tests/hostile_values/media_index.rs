//! `media_index` with hostile carries and counts.

use xattn::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource};
use xattn::{DType, Device, Dispatch, HostTensor, Shapes, Tensor, View, ViewMut, Workspace};

fn ints(device: &Device, values: &[i32], shape: &[usize]) -> Tensor {
    Tensor::upload(device, &HostTensor::from_slice(values, shape).unwrap(), DType::I32).unwrap()
}

/// φ, plan and carry of one row of tokens (9: a medium, 2: a document's end), from a row with
/// guards around it. One dispatch on wgpu.
pub fn run(
    device: &Device,
    op: MediaIndex,
    tokens: &[i32],
    carry: i32,
    count: Option<i32>,
) -> (Vec<i32>, Vec<i32>, i32) {
    let n = tokens.len();
    let guard = 0x7ac0_ffee;
    let ids = ints(device, tokens, &[1, n]);
    let carry_in = ints(device, &[carry], &[1]);
    let media_count = count.map(|c| ints(device, &[c], &[1]));
    let mut phi = ints(device, &vec![guard; n + 2], &[1, n + 2]);
    let mut carry_out = ints(device, &[guard; 3], &[3]);
    let plan = HostTensor::from_slice(&vec![guard as u32; 2 * (n + 3)], &[1, n + 3, 2]).unwrap();
    let mut plan = Tensor::upload(device, &plan, DType::U32).unwrap();
    let args: MediaIndexArgs<View<'_>, ViewMut<'_>> = MediaIndexArgs {
        source: MediaSource::Tokens { ids: ids.view(), token: 9 },
        carry_in: Some(carry_in.view()),
        carry_out: Some(carry_out.view_mut().narrow(0, 1, 1).unwrap()),
        media_count: media_count.as_ref().map(Tensor::view),
        media_index: phi.view_mut().narrow(1, 1, n).unwrap(),
        plan: Some(plan.view_mut().narrow(1, 1, n + 1).unwrap()),
    };
    let shapes = MediaIndex::shapes(&args);
    let prepared = op.prepare(device, shapes.unwrap()).unwrap();
    let mut workspace = Workspace::new(device, prepared.workspace_bytes()).unwrap();
    let mut recorder = device.recorder().unwrap();
    prepared.enqueue(&mut recorder, args, &mut workspace).unwrap();
    #[cfg(feature = "wgpu")]
    if let xattn::Recorder::Wgpu(inner) = &recorder {
        assert_eq!(inner.dispatches(), 1);
    }
    device.finish(recorder).unwrap();
    let read = |t: &Tensor| t.download(device).unwrap().to_vec::<i32>().unwrap();
    let (phi, carry) = (read(&phi), read(&carry_out));
    let plan: Vec<i32> =
        plan.download(device).unwrap().to_vec::<u32>().unwrap().into_iter().map(|w| w as i32).collect();
    let edges = [phi[0], phi[n + 1], carry[0], carry[2], plan[0], plan[1], plan[2 * n + 4], plan[2 * n + 5]];
    assert_eq!(edges, [guard; 8], "guards");
    (phi[1..=n].to_vec(), plan[2..2 * n + 4].to_vec(), carry[1])
}

/// Tokens of which one in 11 is a medium and one in 37 ends a document.
pub fn tokens(n: usize) -> Vec<i32> {
    (0..n)
        .map(|i| match (i * i + 3 * i) % 407 {
            x if x % 11 == 0 => 9,
            x if x % 37 == 1 => 2,
            x => 100 + x as i32,
        })
        .collect()
}

pub const ENDS: [DocumentEnd; 3] =
    [DocumentEnd::Ignore, DocumentEnd::Hide { token: 2 }, DocumentEnd::Restart { token: 2 }];

/// Carries and counts of any value, on whole rows, on rows of one chunk of a kernel, and of
/// several: what the reference gives.
pub fn expect_the_references_numbers(device: &Device) {
    let reference = Device::reference();
    for n in [0, 1, 7, 255, 2048, 2049, 5000] {
        let tokens = tokens(n);
        for carry in [0, 5, -1, -6, i32::MAX, i32::MAX - 3, i32::MIN] {
            for document_end in ENDS {
                let op = MediaIndex { next: false, document_end };
                let got = run(device, op, &tokens, carry, None);
                assert_eq!(got, run(&reference, op, &tokens, carry, None), "{n} {carry} {document_end:?}");
            }
            let op = MediaIndex { next: true, ..MediaIndex::default() };
            for count in [None, Some(0), Some(3), Some(-1), Some(i32::MAX), Some(i32::MIN)] {
                let got = run(device, op, &tokens, carry, count);
                assert_eq!(got, run(&reference, op, &tokens, carry, count), "{n} {carry} next {count:?}");
            }
        }
    }
}
