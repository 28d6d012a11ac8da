//! Every family's tensors, each missing, mis-shaped or with a stray one: the error names it.

use xattn::checkpoint::{Checkpoint, Family, Overrides};
use xattn::{DType, Error, HostTensor};

use crate::small::*;

/// One family's checkpoint: its configuration, and how many heads where no configuration says so.
struct Sample {
    name: &'static str,
    family: Family,
    tensors: Tensors,
    config: Option<String>,
    heads: Option<usize>,
    block_heads: Option<usize>,
    /// Tensors whose absence means another model, not a broken one.
    optional: &'static [&'static str],
}

fn samples() -> Vec<Sample> {
    let sample = |name, family, tensors, config: Option<&str>| Sample {
        name,
        family,
        tensors,
        config: config.map(String::from),
        heads: None,
        block_heads: None,
        optional: &[],
    };
    let open_flamingo = all([
        below("perceiver.", &open_flamingo_resampler()),
        below("lang_encoder.model.layers.0.gated_cross_attn_layer.", &open_flamingo_block()),
        below("lang_encoder.model.layers.1.gated_cross_attn_layer.", &open_flamingo_block()),
        below("lang_encoder.model.layers.2.gated_cross_attn_layer.", &open_flamingo_block()),
    ]);
    let xgen_mm = below("vision_tokenizer.", &all([open_flamingo_resampler(), dense("projection", 20, 16)]));
    let idefics = idefics_checkpoint();
    let idefics2 = below("model.connector.", &idefics2());
    let mllama = mllama_checkpoint();
    let meta = all([
        dense("vision_model.vision_projection", 32, 20),
        below("text_model.cross_attention_layers.0.", &mllama_meta_layer()),
        below("text_model.cross_attention_layers.1.", &mllama_meta_layer()),
    ]);
    let otter = all([
        below("perceiver.", &otter_resampler()),
        below("lang_encoder.model.layers.3.gated_cross_attn_layer.", &renamed(&open_flamingo_block(), &OTTER_BLOCK)),
    ]);
    let mini = all([
        below("flamingo.resampler.", &mini_resampler()),
        below("flamingo.lm.transformer.h.3.xattn_block.", &renamed(&open_flamingo_block(), &MINI_BLOCK)),
    ]);
    let mut generation = blip2();
    generation.retain(|name, _| {
        let text_bank = [".intermediate.", ".1.output.", ".0.output."].iter().any(|part| name.contains(part));
        !(text_bank || name.starts_with("embeddings.") || name.contains("text_proj") || name.contains("vision_proj"))
    });
    vec![
        Sample { heads: Some(8), ..sample("otter", Family::OpenFlamingo, otter, None) },
        Sample { heads: Some(8), ..sample("mini", Family::OpenFlamingo, mini, None) },
        Sample {
            optional: &["itm_head", "language_projection"],
            ..sample("generation", Family::Blip2, generation, Some(&qformer_config("blip-2")))
        },
        Sample { heads: Some(8), ..sample("open-flamingo", Family::OpenFlamingo, open_flamingo, None) },
        sample("xgen-mm", Family::XgenMm, xgen_mm, None),
        sample("idefics", Family::Idefics, idefics.clone(), Some(IDEFICS_CONFIG)),
        Sample { heads: Some(2), block_heads: Some(2), ..sample("idefics-alone", Family::Idefics, idefics, None) },
        sample("idefics2", Family::Idefics2, idefics2, Some(IDEFICS2_CONFIG)),
        sample("mllama", Family::Mllama, mllama, Some(MLLAMA_CONFIG)),
        sample("meta", Family::Mllama, meta, Some(MLLAMA_CONFIG)),
        Sample {
            optional: &["vision_projection", "text_projection", "itm_head", "language_projection", "embeddings."],
            ..sample("blip-2", Family::Blip2, blip2(), Some(&qformer_config("blip-2")))
        },
        Sample {
            optional: &["language_projection"],
            ..sample("instructblip", Family::InstructBlip, instructblip(), Some(&qformer_config("instructblip")))
        },
        Sample {
            heads: Some(2),
            optional: &["opt_proj", "vision_proj", "text_proj", "itm_head"],
            ..sample("lavis", Family::Lavis, lavis(), None)
        },
    ]
}

fn problems(sample: &Sample, folder: &Folder, tensors: &Tensors) -> Vec<String> {
    write(&folder.join("model.safetensors"), tensors);
    let overrides = Overrides { heads: sample.heads, block_heads: sample.block_heads, ..Overrides::default() };
    let checkpoint = Checkpoint::open(&folder.0, Some(sample.family)).unwrap();
    match checkpoint.bridges(&overrides) {
        Ok(_) => Vec::new(),
        Err(Error::Weights { problems, .. }) => problems,
        Err(other) => panic!("{}: {other}", sample.name),
    }
}

fn folder(sample: &Sample, test: &str) -> Folder {
    let folder = Folder::new(&format!("{test}-{}", sample.name));
    if let Some(config) = &sample.config {
        std::fs::write(folder.join("config.json"), config).unwrap();
    }
    assert_eq!(problems(sample, &folder, &sample.tensors), Vec::<String>::new(), "{}", sample.name);
    folder
}

#[test]
fn missing() {
    let mut failures = Vec::new();
    for sample in samples() {
        let folder = folder(&sample, "missing");
        for name in sample.tensors.keys() {
            let mut t = sample.tensors.clone();
            let shape = t.remove(name).unwrap().shape().to_vec();
            let found = problems(&sample, &folder, &t);
            if sample.optional.iter().any(|part| name.starts_with(part)) && found.is_empty() {
                continue;
            }
            // Leading dimensions of 1 are the file's, not the model's. Sizes that only this tensor
            // tells are "?", the usual 32 queries, or a number of dimensions.
            let squeezed: Vec<usize> = shape.iter().copied().skip_while(|&d| d == 1 && shape.len() > 1).collect();
            let told =
                !(sample.config.is_none() || ["embeddings.", "proj", "itm"].iter().any(|part| name.contains(part)));
            let right = |problem: &String| {
                let Some(expected) = problem.strip_prefix(&format!("{name}: missing, expected ")) else { return false };
                [&shape, &squeezed].into_iter().any(|shape| {
                    let dims = expected.trim_matches(['[', ']']).split(", ");
                    let agree =
                        dims.clone().zip(shape).all(|(e, d)| e == d.to_string() || !told && (e == "?" || e == "32"));
                    agree && dims.count() == shape.len() || !told && expected == format!("{} dimensions", shape.len())
                })
            };
            if found.len() != 1 || !right(&found[0]) {
                failures.push(format!("{}: {name} {shape:?} removed: {found:#?}", sample.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn misshaped() {
    let mut failures = Vec::new();
    for sample in samples() {
        let folder = folder(&sample, "misshaped");
        for (name, tensor_there) in &sample.tensors {
            let shape = tensor_there.shape();
            let longer: Vec<usize> =
                shape.iter().enumerate().map(|(i, &d)| d + usize::from(i + 1 == shape.len())).collect();
            let deeper: Vec<usize> = [&[2], shape].concat();
            for other in [longer, deeper] {
                let mut t = sample.tensors.clone();
                t.insert(name.clone(), tensor(name, &other));
                let found = problems(&sample, &folder, &t);
                // Without a configuration, a tensor that others are measured by may be right.
                let named = found
                    .iter()
                    .any(|p| p.starts_with(&format!("{name}: ")) && p.contains(&format!("found {other:?}")));
                if !(named || sample.config.is_none() && !found.is_empty()) {
                    failures.push(format!("{}: {name} as {other:?}: {found:#?}", sample.name));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn of_integers() {
    for sample in samples() {
        let folder = folder(&sample, "integers");
        for (name, tensor_there) in &sample.tensors {
            let mut t = sample.tensors.clone();
            let zeros = vec![0i32; tensor_there.elements()];
            t.insert(name.clone(), HostTensor::from_slice(&zeros, tensor_there.shape()).unwrap());
            let found = problems(&sample, &folder, &t);
            let wanted = format!("{name}: expected reals, found i32");
            assert!(found.contains(&wanted), "{}: {name}: {found:#?}", sample.name);
        }
    }
}

/// A tensor that no module has, beside every one that the bridge has.
#[test]
fn surplus() {
    for sample in samples() {
        let folder = folder(&sample, "surplus");
        let mut t = sample.tensors.clone();
        let mut wanted = Vec::new();
        for name in sample.tensors.keys().filter(|name| name.contains('.')) {
            let other = format!("{name}_extra");
            wanted.push(format!("{other}: surplus, expected no such tensor, found [3]"));
            t.insert(other.clone(), tensor(&other, &[3]));
        }
        wanted.sort();
        // LAVIS' and BLIP-2's word embeddings stand beside the Q-Former in one of them.
        wanted.retain(|w| !(sample.family == Family::Blip2 && w.starts_with("embeddings.")));
        let mut found = problems(&sample, &folder, &t);
        found.sort();
        assert_eq!(found, wanted, "{}", sample.name);
    }
}

/// An extent of 0 lets the other have any size: an error, no panic or overflow.
#[test]
fn of_extreme_extents() {
    for sample in samples() {
        let folder = folder(&sample, "extreme");
        for (name, tensor_there) in &sample.tensors {
            let rank = tensor_there.shape().len();
            for at in 0..rank {
                for extent in [1 << 60, 1 << 32] {
                    let mut shape = vec![0; rank];
                    shape[at] = extent;
                    if rank == 1 {
                        shape = vec![extent, 0];
                    }
                    let mut t = sample.tensors.clone();
                    t.insert(name.clone(), HostTensor::from_bytes(DType::F32, &shape, Vec::new()).unwrap());
                    let found = problems(&sample, &folder, &t);
                    assert!(!found.is_empty(), "{}: {name} as {shape:?}", sample.name);
                }
            }
        }
    }
}
