//! `media_index`: hostile carries and counts, chunks that continue, one dispatch.

use xattn::WgpuOptions;
use xattn::ops::MediaIndex;

use crate::hostile_values::media_index::{ENDS, expect_the_references_numbers, run, tokens};
use crate::support::device;

#[test]
fn hostile_carries_and_counts_give_what_the_reference_gives() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    expect_the_references_numbers(&device);
}

#[test]
fn chunks_continue_where_the_one_before_ended() {
    let Some(device) = device(&WgpuOptions::default()) else { return };
    let tokens = tokens(3000);
    for document_end in ENDS {
        let op = MediaIndex { next: false, document_end };
        let (whole, _, end) = run(&device, op, &tokens, 0, None);
        let (mut parts, mut carry, mut at) = (Vec::new(), 0, 0);
        for len in [1, 2, 700, 2100, 197] {
            let (phi, _, after) = run(&device, op, &tokens[at..at + len], carry, None);
            parts.extend(phi);
            (carry, at) = (after, at + len);
        }
        assert_eq!((parts, carry), (whole, end), "{document_end:?}");
    }
}
