//! The comparison finds planted errors; reproduction strings are what they say.
#![cfg(feature = "verify")]

use proptest::prelude::*;
use xattn::ops::Visibility;
use xattn::verify::cases::declare::Parameters;
use xattn::verify::cases::{AttentionCase, Case, CaseOp, NormCase, Verdict, pairwise, random, selection};
use xattn::verify::compare::{Judge, Outcome, compare, half_ulp, ulp};
use xattn::verify::generate::{Fill, Rng, reals};
use xattn::{DType, Device, HostTensor};

fn tensor(values: &[f32]) -> HostTensor<'static> {
    HostTensor::from_slice(values, &[values.len()]).unwrap()
}

fn wide(values: &[f32]) -> HostTensor<'static> {
    tensor(values).to_dtype(DType::F64).unwrap().into_owned().unwrap()
}

fn judged(actual: &[f32], truth: &[f32], judge: &Judge<'_>) -> Outcome {
    compare("out", &tensor(actual), &wide(truth), judge).unwrap()
}

#[test]
fn ulps_are_the_distance_to_the_next_number() {
    assert_eq!(ulp(1.0, DType::F32), f64::from(f32::EPSILON));
    assert_eq!(ulp(-1.99, DType::BF16), 2f64.powi(-7));
    assert_eq!(ulp(2.0, DType::F16), 2f64.powi(-9));
    assert_eq!(ulp(0.0, DType::F16), 2f64.powi(-24));
    assert_eq!(half_ulp(4.0, DType::F32), f64::from(f32::EPSILON) * 2.0);
    assert_eq!(ulp(7.0, DType::I32), 0.0);
}

#[test]
fn one_wrong_element_fails_and_is_named() {
    let mut rng = Rng::new(3);
    let truth: Vec<f32> = (0..512).map(|_| rng.normal() as f32).collect();
    let yardsticks: Vec<_> = (0..8).map(|_| tensor(&truth)).collect();
    let good = judged(&truth, &truth, &Judge::Yardstick(&yardsticks));
    assert_eq!((good.failure.clone(), good.max_error, good.elements), (None, 0.0, 512));

    let mut actual = truth.clone();
    actual[300] += 1e-3;
    let bad = judged(&actual, &truth, &Judge::Yardstick(&yardsticks));
    let worst = bad.worst.as_ref().unwrap();
    assert_eq!((worst.index.as_slice(), worst.expected), (&[300][..], f64::from(truth[300])));
    assert_eq!(worst.actual, f64::from(actual[300]));
    // The yardstick is exact: 2 ulps of the largest output are left.
    let largest = truth.iter().fold(0f64, |m, &x| m.max(f64::from(x).abs()));
    assert_eq!(bad.max_bound, 2.0 * ulp(largest, DType::F32));
    assert!(bad.failure.unwrap().starts_with("maximum error 1.000e-3 exceeds"));
}

#[test]
fn an_error_everywhere_fails_by_its_rms() {
    let truth = vec![1.0f32; 512];
    // Each yardstick is wrong once by 4 ulps; the device everywhere by 1: its maximum is fine.
    let mut once = truth.clone();
    once[7] += 4.0 * f32::EPSILON;
    let yardsticks = vec![tensor(&once); 8];
    let bad = judged(&vec![1.0 + f32::EPSILON; 512], &truth, &Judge::Yardstick(&yardsticks));
    assert!(bad.max_error < bad.max_bound);
    assert!(bad.failure.unwrap().starts_with("RMS error 1.192e-7 exceeds 5.960e-8"), "the floor: one rounding");
}

#[test]
fn nan_and_infinity_match_only_themselves() {
    let truth = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0];
    let judge = Judge::Componentwise(&[1e30; 4]);
    assert_eq!(judged(&truth, &truth, &judge).failure, None);
    for (i, wrong) in [(0, 0.0), (1, f32::NEG_INFINITY), (2, f32::MIN), (3, f32::NAN), (3, f32::INFINITY)] {
        let mut actual = truth;
        actual[i] = wrong;
        let bad = judged(&actual, &truth, &judge);
        assert_eq!(bad.failure.as_deref(), Some("NaN or infinity on one side only"), "element {i} = {wrong}");
        assert_eq!(bad.worst.unwrap().index, [i]);
    }
}

#[test]
fn truth_beyond_the_range_must_be_infinite() {
    let truth = HostTensor::from_slice(&[1e6f64, 1.0], &[2]).unwrap();
    let actual = |x: f32| tensor(&[x, 1.0]).to_dtype(DType::F16).unwrap().into_owned().unwrap();
    let judge = Judge::Componentwise(&[1e9; 2]);
    assert_eq!(compare("out", &actual(f32::INFINITY), &truth, &judge).unwrap().failure, None);
    assert!(compare("out", &actual(60000.0), &truth, &judge).unwrap().failure.is_some());
}

#[test]
fn a_bound_that_is_no_number_fails() {
    assert!(judged(&[1.0], &[2.0], &Judge::Componentwise(&[f64::NAN])).failure.is_some());
}

#[test]
fn integers_compare_exactly() {
    let phi = HostTensor::from_slice(&[0i32, 1, 1, 2], &[2, 2]).unwrap();
    let off_by_one = HostTensor::from_slice(&[0i32, 1, 2, 2], &[2, 2]).unwrap();
    let bad = compare("media_index", &off_by_one, &phi, &Judge::Exact).unwrap();
    assert_eq!(bad.worst.unwrap().index, [1, 0]);
    assert!(bad.failure.is_some());
    let message = compare("out", &tensor(&[1.0]), &phi, &Judge::Exact).unwrap_err().to_string();
    assert_eq!(message, "verify: out: expected i32[2, 2], got f32[1]");
}

#[test]
fn an_off_by_one_media_index_is_found_in_attention() {
    let text = "attention:batch=1,q=65,k=64,k2=none,h=4/2,d=24,rule=same_media,media=3,phi=ordered,keys=all,keys2=all,\
                batching=dense,empty=zero,extra=none,values=normal,layout=gapless,dtype=bf16,out=same,seed=5";
    let case: AttentionCase = text.parse().unwrap();
    let mut call = case.call().unwrap();
    let run = |call: &xattn::verify::cases::call::Call<_>, device: &Device, truth| {
        call.execute(device, truth, Ok).unwrap().outputs.remove(0).1
    };
    let truth = run(&call, &Device::reference(), true);
    let yardsticks: Vec<_> = (0..8).map(|p| run(&call, &Device::yardstick(p), false)).collect();
    let judge = Judge::Yardstick(&yardsticks);
    assert_eq!(compare("out", &run(&call, &Device::yardstick(99), false), &truth, &judge).unwrap().failure, None);

    let Visibility::SameMedia(media) = &mut call.args.visibility else { panic!("the rule of the case") };
    let mut phi = call.operands.tensor(media.media_index).unwrap().to_vec::<i32>().unwrap();
    let last = phi.len() - 1;
    assert!(phi[last] > 1, "the last row has media before it");
    phi[last] -= 1;
    media.media_index = call.operands.read("media_index", HostTensor::from_slice(&phi, &[1, 65]).unwrap());
    let bad = compare("out", &run(&call, &Device::yardstick(0), false), &truth, &judge).unwrap();
    assert_eq!(bad.worst.as_ref().unwrap().index[1], last);
    assert!(bad.failure.unwrap().starts_with("maximum error"));
}

#[test]
fn sparse_values_are_small_integers_and_mostly_zero() {
    let values = reals(&mut Rng::new(1), Fill::Sparse, DType::BF16, &[5000]).unwrap().to_f64().unwrap();
    assert!(values.iter().all(|x| x.abs() <= 2.0 && x.fract() == 0.0));
    let zeros = values.iter().filter(|x| **x == 0.0).count();
    assert!((3850..4150).contains(&zeros), "{zeros}");
}

#[test]
fn every_selected_case_says_how_to_run_it_again() {
    let cases = selection();
    for case in &cases {
        assert_eq!(case.to_string().parse::<Case>().unwrap(), *case);
    }
    assert_eq!(cases, selection(), "deterministic");
    let random = random();
    assert!(random.len() >= 2000);
    for case in &random {
        assert_eq!(case.to_string().parse::<Case>().unwrap(), *case);
    }
}

/// Words for benchmarks leave the selections as they are.
#[test]
fn no_selection_takes_what_benchmarks_take() {
    for case in selection().into_iter().chain(random()) {
        let text = case.to_string();
        assert!(["=uniform,layout", "=spread", "=tiles", "=most"].iter().all(|word| !text.contains(word)), "{text}");
    }
}

/// Every rule meets every boundary length of queries and of both K/V segments.
#[test]
fn the_selection_covers_rules_with_boundary_lengths() {
    let cases: Vec<AttentionCase> = pairwise::covering();
    for rule in ["all", "same_media", "preceding_media", "prefix_causal", "media_bits"] {
        for length in xattn::verify::cases::declare::BOUNDARY {
            for field in ["q", "k", "k2"] {
                let wanted = format!(",{field}={length},");
                let found = cases.iter().any(|c| {
                    let text = c.to_string();
                    text.contains(&wanted) && text.contains(&format!(",rule={rule},"))
                });
                assert!(found, "{rule} with {wanted}");
            }
        }
    }
}

#[test]
fn wrong_reproduction_strings_say_what_is_wrong() {
    let message = |text: &str| text.parse::<Case>().unwrap_err().to_string();
    assert!(message("softmax:q=1").ends_with("expected the name of an op and a colon, got softmax"));
    assert!(message("norm:batch=x,seed=1").contains("batch=x: invalid digit"));
    assert!(message("norm:colour=1,seed=1").contains("colour is no parameter"));
    assert!(message("norm:batch=1,batch=1,seed=1").contains("batch occurs twice"));
    assert!(message("norm:batch=1,seed=1").contains("rows is missing"));
    assert!(message("gated_residual:batch").contains("batch: expected name=value"));
}

#[test]
fn an_unlawful_case_fails_with_the_ops_own_words() {
    let text = NormCase::choose(&vec![0; NormCase::extents().len()], 1).to_string().replace("width=1,", "width=0,");
    let case: Case = text.parse().unwrap();
    let verdict = case.verify(&[Device::reference()]).remove(0);
    assert!(matches!(verdict, Verdict::Compared(_) | Verdict::Failed(_)), "no panic");
}

#[test]
fn reproduction_strings_round_trip() {
    for case in selection().into_iter().chain(random()) {
        assert_eq!(case.to_string().parse::<Case>().unwrap(), case);
    }
}

proptest! {
    #[test]
    fn no_text_makes_parsing_panic(text in "(attention|norm|linear)?:?[a-z0-9_=,/:-]{0,60}") {
        let _ = text.parse::<Case>();
    }
}
