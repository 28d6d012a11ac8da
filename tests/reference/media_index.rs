use xattn::ops::{DocumentEnd, MediaIndex, MediaIndexArgs, MediaSource, Op};
use xattn::{DType, Dispatch, View, ViewMut};

use crate::{reference, spec, view, view_mut};

/// The media token and the end of document in these tests.
const M: i32 = 9;
const E: i32 = 2;

const LAST: MediaIndex = MediaIndex { next: false, document_end: DocumentEnd::Ignore };
const NEXT: MediaIndex = MediaIndex { next: true, document_end: DocumentEnd::Ignore };
const HIDE: MediaIndex = MediaIndex { next: false, document_end: DocumentEnd::Hide { token: E } };
const RESTART: MediaIndex = MediaIndex { next: false, document_end: DocumentEnd::Restart { token: E } };

/// φ and the state afterwards, of one row.
fn row(op: MediaIndex, ids: &[i32], carry: i32, media_count: Option<i32>) -> (Vec<i32>, i32) {
    let (carry_in, mut phi, mut carry_out) = ([carry], vec![-7; ids.len()], [-7]);
    let media_count = media_count.map(|n| [n]);
    let args = MediaIndexArgs {
        source: MediaSource::Tokens { ids: view(ids, &[1, ids.len()]), token: M },
        carry_in: Some(view(&carry_in, &[1])),
        carry_out: Some(view_mut(&mut carry_out, &[1])),
        media_count: media_count.as_ref().map(|n| view(n, &[1])),
        media_index: view_mut(&mut phi, &[1, ids.len()]),
        plan: None,
    };
    op.run(&reference(), args).unwrap();
    (phi, carry_out[0])
}

#[test]
fn last_medium_counts_itself() {
    assert_eq!(row(LAST, &[0, M, 0, 0, M, M, 0], 0, None), (vec![0, 1, 1, 1, 2, 3, 3], 3));
    assert_eq!(row(LAST, &[0, M, E, 0], 4, None), (vec![4, 5, 5, 5], 5));
    assert_eq!(row(LAST, &[], 4, None), (vec![], 4));
}

#[test]
fn document_ends_hide_until_the_next_medium() {
    assert_eq!(row(HIDE, &[M, 0, E, 0, M, 0], 0, None), (vec![1, 1, 1, 0, 2, 2], 2));
    assert_eq!(row(HIDE, &[M, M, E, E, 0], 0, None), (vec![1, 2, 2, 0, 0], !2));
    assert_eq!(row(HIDE, &[0, E, M], !2, None), (vec![0, 0, 3], 3));
    // An end before any medium: φ is 0 either way, and the state says so.
    assert_eq!(row(HIDE, &[0, E], 0, None), (vec![0, 0], -1));
}

#[test]
fn document_ends_restart_the_count() {
    assert_eq!(row(RESTART, &[M, M, E, 0, M, 0], 0, None), (vec![1, 2, 2, 0, 1, 1], 1));
    assert_eq!(row(RESTART, &[M, M, E], 0, None), (vec![1, 2, 2], -1));
    assert_eq!(row(RESTART, &[0, M, 0], -1, None), (vec![0, 1, 1], 1));
    assert_eq!(row(RESTART, &[0, M, 0], !3, None), (vec![0, 1, 1], 1));
    assert_eq!(row(RESTART, &[0], !3, None), (vec![0], -1));
    // The end token is a medium too: it belongs to the document that it ends.
    let both = MediaIndex { document_end: DocumentEnd::Restart { token: M }, ..LAST };
    assert_eq!(row(both, &[M, 0, M, 0], 3, None), (vec![4, 0, 1, 0], -1));
}

#[test]
fn chunks_continue_where_the_last_one_stopped() {
    let ids = [0, M, 0, E, 0, M, M, 0, E, M, 0, E, E, 0];
    for op in [LAST, HIDE, RESTART] {
        let whole = row(op, &ids, 0, None);
        for cut in 0..=ids.len() {
            let (mut phi, carry) = row(op, &ids[..cut], 0, None);
            let (rest, carry) = row(op, &ids[cut..], carry, None);
            phi.extend(rest);
            assert_eq!((phi, carry), whole, "{op:?} cut at {cut}");
        }
    }
}

#[test]
fn next_medium() {
    assert_eq!(row(NEXT, &[0, M, 0, M, 0, 0], 0, None), (vec![1, 1, 2, 2, 0, 0], 2));
    // A chunk: two media before it, five in the whole row.
    assert_eq!(row(NEXT, &[0, M, 0], 2, Some(5)), (vec![3, 3, 4], 3));
    assert_eq!(row(NEXT, &[0, M, 0], 2, Some(3)), (vec![3, 3, 0], 3));
    // A carry that says hidden is honoured under every rule.
    assert_eq!(row(NEXT, &[0, M, 0], !2, Some(5)), (vec![0, 3, 4], 3));
    assert_eq!(row(LAST, &[0, 0], !2, None), (vec![0, 0], !2));
    assert_eq!(row(NEXT, &[0, M, 0], 2, Some(i32::MIN)), (vec![0, 0, 0], 3));
}

#[test]
fn hostile_carries_saturate() {
    assert_eq!(row(LAST, &[M, 0], i32::MAX, None), (vec![i32::MAX; 2], i32::MAX));
    assert_eq!(row(HIDE, &[0, M], i32::MIN, None), (vec![0, i32::MAX], i32::MAX));
    assert_eq!(row(NEXT, &[0, M], i32::MAX, Some(i32::MAX)), (vec![i32::MAX; 2], i32::MAX));
    assert_eq!(row(RESTART, &[0, M], i32::MIN, None), (vec![0, 1], 1));
}

#[test]
fn locations_and_plan_of_several_rows() {
    // The second row's locations are u32::MAX and 2: any nonzero value is a medium.
    let locations = [0u32, 1, 0, 0, u32::MAX, 2, 0, 0];
    let (mut phi, mut plan) = ([-7; 8], [77u32; 20]);
    let args = MediaIndexArgs {
        source: MediaSource::Locations(view(&locations, &[2, 4])),
        carry_in: None,
        carry_out: None,
        media_count: None,
        media_index: view_mut(&mut phi, &[2, 4]),
        plan: Some(view_mut(&mut plan, &[2, 5, 2])),
    };
    LAST.run(&reference(), args).unwrap();
    assert_eq!(phi, [0, 1, 1, 1, 1, 2, 2, 2]);
    assert_eq!(plan, [2, 0, 0, 0, 1, 1, 0, 0, 0, 0, 2, 0, 0, 1, 1, 2, 0, 0, 0, 0]);
}

#[test]
fn plan_of_phi_that_falls() {
    let (mut phi, mut plan) = ([-7; 5], [77u32; 12]);
    let args = MediaIndexArgs {
        source: MediaSource::Tokens { ids: view(&[M, E, 0, M, 0], &[1, 5]), token: M },
        carry_in: None,
        carry_out: None,
        media_count: None,
        media_index: view_mut(&mut phi, &[1, 5]),
        plan: Some(view_mut(&mut plan, &[1, 6, 2])),
    };
    RESTART.run(&reference(), args).unwrap();
    assert_eq!(phi, [1, 1, 0, 1, 1]);
    assert_eq!(plan, [3, 0, 0, 1, 2, 0, 3, 1, 0, 0, 0, 0]);
}

#[test]
fn zero_rows_and_shared_carry_memory() {
    let (mut plan, mut carry) = ([77u32; 4], [3, -5]);
    let address = carry.as_mut_ptr().cast();
    // SAFETY: the array outlives the call, which reads its carries before it writes them.
    let (carry_in, carry_out) = unsafe {
        let spec = spec(DType::I32, &[2]);
        (View::from_raw_host(spec, address, 8).unwrap(), ViewMut::from_raw_host(spec, address, 8).unwrap())
    };
    let args = MediaIndexArgs {
        source: MediaSource::Tokens { ids: view::<i32>(&[], &[2, 0]), token: M },
        carry_in: Some(carry_in),
        carry_out: Some(carry_out),
        media_count: None,
        media_index: view_mut::<i32>(&mut [], &[2, 0]),
        plan: Some(view_mut(&mut plan, &[2, 1, 2])),
    };
    HIDE.run(&reference(), args).unwrap();
    assert_eq!((plan, carry), ([0; 4], [3, -5]));
}

#[test]
fn messages() {
    let i32s = |shape: &[usize]| spec(DType::I32, shape);
    let good = MediaIndexArgs {
        source: MediaSource::Tokens { ids: i32s(&[2, 4]), token: M },
        carry_in: None,
        carry_out: None,
        media_count: None,
        media_index: i32s(&[2, 4]),
        plan: None,
    };
    let message = |op: MediaIndex, args| op.check(&args).unwrap_err().to_string();
    LAST.check(&good).unwrap();
    let locations = MediaSource::Locations(spec(DType::U32, &[2, 4]));
    assert_eq!(
        message(HIDE, MediaIndexArgs { source: locations, ..good.clone() }),
        "media_index: document_end: expected Ignore, since locations hold no token ids, got Hide { token: 2 }"
    );
    assert_eq!(
        message(MediaIndex { next: true, ..RESTART }, good.clone()),
        "media_index: next: expected no document ends beside it, got Restart { token: 2 }"
    );
    assert_eq!(
        message(LAST, MediaIndexArgs { media_count: Some(i32s(&[2])), ..good.clone() }),
        "media_index: media_count: expected none without `next`, got one"
    );
    assert_eq!(
        message(LAST, MediaIndexArgs { carry_in: Some(i32s(&[3])), ..good.clone() }),
        "media_index: carry_in: expected shape [batch] = [2], got i32[3]"
    );
    assert_eq!(
        message(LAST, MediaIndexArgs { plan: Some(spec(DType::U32, &[2, 4, 2])), ..good }),
        "media_index: plan: expected shape [batch, 1 + rows, 2] = [2, 5, 2], got u32[2, 4, 2]"
    );
}
