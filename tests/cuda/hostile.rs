//! Any index values and media plans: no access outside, and every row as in the contract.

use std::ops::Range;

use xattn::CudaAttentionVariant::{
    self, Decode, DecodeSplit, General, Media, Resampler, ResamplerHopper, ResamplerSplit,
};
use xattn::ops::Attention;
use xattn::{CudaOptions, DType, Device};

use crate::hostile_values::plans::{Plan, plans};
use crate::hostile_values::{
    DIM, Form, HEADS, PATTERN, ROWS, Values, expect_close, expect_one_of_each, media_index, op, run,
};
use crate::support::{device, is_hopper, opened};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn with(variant: Option<CudaAttentionVariant>) -> Option<Device> {
    let mut options = CudaOptions::from_env().unwrap();
    options.attention = variant;
    opened(&options)
}

/// Whether a kernel that is named serves a form of these operands.
fn serves(variant: CudaAttentionVariant, form: Form, dtype: DType) -> bool {
    match variant {
        Media => matches!(form, Form::Packed | Form::Bits),
        Resampler | ResamplerSplit => form == Form::All,
        ResamplerHopper => form == Form::All && dtype != DType::F32,
        DecodeSplit => form != Form::Packed,
        _ => true,
    }
}

#[test]
fn hostile_values_reach_nothing_outside() {
    let named = [Media, General, Decode, DecodeSplit, Resampler, ResamplerSplit, ResamplerHopper].map(Some);
    for variant in named.into_iter().chain([None]) {
        let Some(device) = with(variant) else { return };
        if variant == Some(ResamplerHopper) && !is_hopper(&device) {
            continue;
        }
        // Chunks of keys have no policies for rows that see nothing.
        let split = matches!(variant, Some(DecodeSplit | ResamplerSplit));
        let op = if split { Attention::for_head_dim(DIM) } else { op() };
        for (form, dtype) in Form::EACH.into_iter().flat_map(|form| DTYPES.map(|dtype| (form, dtype))) {
            if !variant.is_none_or(|variant| serves(variant, form, dtype)) {
                continue;
            }
            for seed in 0..4 {
                let values = Values::hostile(seed);
                let name = format!("{variant:?} {form:?} {seed} {dtype}");
                let (got, _) = run(&device, form, &values, dtype, op);
                if form == Form::Packed {
                    expect_one_of_each(&name, &got, &values, dtype, op);
                } else {
                    expect_close(&name, &got, &run(&Device::reference(), form, &values, dtype, op).0, dtype);
                }
            }
        }
    }
}

/// Rows that lie in a run of the plan get their result, the others stay as they were. Other
/// kernels, and ragged queries, do without the plan.
#[test]
fn a_plan_chooses_rows_and_nothing_else() {
    let (Some(media), Some(general)) = (with(Some(Media)), with(Some(General))) else { return };
    let plans = plans(ROWS);
    for dtype in DTYPES {
        let mut left = 0;
        for (i, plan) in plans.iter().enumerate() {
            // The second problem's plan follows the first's: they must not be confused.
            let pair = [plan, &plans[(i * 5 + 3) % plans.len()]];
            let values = Values { plan: Some(pair.map(|plan| plan.words.clone())), ..Values::plain() };
            let (mut truth, _) = run(&Device::reference(), Form::Bits, &values, dtype, op());
            let (got, _) = run(&media, Form::Bits, &values, dtype, op());
            left +=
                leave_as_they_were(&mut truth[0], pair, HEADS * DIM) + leave_as_they_were(&mut truth[1], pair, HEADS);
            expect_close(&format!("{dtype} {} and {}", pair[0].name, pair[1].name), &got, &truth, dtype);
        }
        assert!(left > 0, "no plan leaves out a row");
        for (device, form) in [(&media, Form::Packed), (&general, Form::Packed), (&general, Form::Bits)] {
            let (expected, _) = run(device, form, &Values::plain(), dtype, op());
            for plan in plans.iter().step_by(6) {
                let plan = Some([plan.words.clone(), plan.words.clone()]);
                let got = run(device, form, &Values { plan, ..Values::plain() }, dtype, op()).0;
                assert!(got == expected, "{form:?} {dtype}");
            }
        }
    }
}

/// Restores rows that no run of their problem's plan holds; returns how many numbers.
fn leave_as_they_were(output: &mut [u32], plans: [&Plan; 2], width: usize) -> usize {
    let mut left = 0;
    for (problem, plan) in plans.into_iter().enumerate() {
        for row in (0..ROWS).filter(|&row| !plan.holds(row)) {
            let numbers: Range<usize> = (problem * ROWS + row) * width..(problem * ROWS + row + 1) * width;
            output[numbers].fill(PATTERN);
            left += width;
        }
    }
    left
}

#[test]
fn hostile_carries_and_counts_give_what_the_reference_gives() {
    let Some(device) = device() else { return };
    media_index::expect_the_references_numbers(&device);
}
