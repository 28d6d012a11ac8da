//! Copies of parts of a bridge, for every family and every set of parts that may stand twice: which
//! are told apart, and what each prefix that is listed reads.

use std::collections::BTreeSet;

use xattn::Error;
use xattn::checkpoint::{Checkpoint, Family, Overrides};

use crate::small::*;

/// A checkpoint and its parts, each by its prefix.
struct Case {
    family: Family,
    tensors: Tensors,
    config: Option<String>,
    parts: Vec<&'static str>,
    overrides: Overrides,
}

fn cases() -> Vec<Case> {
    let heads = Overrides { heads: Some(2), block_heads: Some(2), ..Overrides::default() };
    let qformer = Overrides { heads: Some(2), ..Overrides::default() };
    let usual = Overrides::default();
    let norm: Tensors = ["weight", "bias"]
        .map(|n| (format!("Qformer.cls.predictions.transform.LayerNorm.{n}"), tensor(n, &[16])))
        .into();
    let decoder = [("decoder.weight", vec![9, 16]), ("decoder.bias", vec![9])];
    let decoder = decoder.map(|(n, shape)| (format!("Qformer.cls.predictions.{n}"), tensor(n, &shape)));
    let lavis = all([lavis(), norm, dense("Qformer.cls.predictions.transform.dense", 16, 16), decoder.into()]);
    let flamingo = |resampler: &str, [one, other]: [&str; 2]| {
        let (resampler, block) = (below(resampler, &open_flamingo_resampler()), open_flamingo_block());
        all([resampler, below(one, &block), below(other, &block)])
    };
    let [fields, without] = [Some(IDEFICS_CONFIG.to_string()), None];
    let idefics_parts =
        ["model.perceiver_resampler.", "model.gated_cross_attn_layers.0.", "model.gated_cross_attn_layers.1."];
    let mllama_parts = ["multi_modal_projector.", "language_model.model.layers.1.", "language_model.model.layers.3."];
    let case = |family, tensors: Tensors, config: Option<String>, parts: &[&'static str], overrides: &Overrides| Case {
        family,
        tensors,
        config,
        parts: parts.to_vec(),
        overrides: overrides.clone(),
    };
    let of_blip2 = [
        "query_tokens",
        "qformer.",
        "embeddings.",
        "language_projection.",
        "vision_projection.",
        "text_projection.",
        "itm_head.",
    ];
    let of_instruct = ["query_tokens", "qformer.", "language_projection."];
    let of_lavis = ["query_tokens", "Qformer.bert.", "Qformer.cls.predictions.", "opt_proj."];
    let open = ["perceiver.", "lang_encoder.gated_cross_attn_layers.0.", "lang_encoder.gated_cross_attn_layers.1."];
    let lucidrains = ["perceiver_resampler.", "layers.0.1.", "layers.2.1."];
    let connector = ["model.connector.modality_projection.", "model.connector.perceiver_resampler."];
    vec![
        case(Family::Blip2, blip2(), Some(qformer_config("blip-2")), &of_blip2, &usual),
        case(Family::InstructBlip, instructblip(), Some(qformer_config("instructblip")), &of_instruct, &usual),
        case(Family::Lavis, lavis, None, &of_lavis, &qformer),
        case(Family::OpenFlamingo, flamingo(open[0], [open[1], open[2]]), None, &open, &usual),
        case(Family::OpenFlamingo, flamingo(lucidrains[0], [lucidrains[1], lucidrains[2]]), None, &lucidrains, &usual),
        case(Family::Idefics, idefics_checkpoint(), fields, &idefics_parts, &usual),
        case(Family::Idefics, idefics_checkpoint(), without, &idefics_parts, &heads),
        case(
            Family::Idefics2,
            below("model.connector.", &idefics2()),
            Some(IDEFICS2_CONFIG.into()),
            &connector,
            &usual,
        ),
        case(Family::Mllama, mllama_checkpoint(), Some(MLLAMA_CONFIG.into()), &mllama_parts, &usual),
        case(Family::Mllama, mllama_checkpoint(), None, &mllama_parts, &Overrides { block_heads: Some(4), ..usual }),
    ]
}

/// Every set of some of the parts.
fn sets(count: usize) -> impl Iterator<Item = BTreeSet<usize>> {
    (1..1usize << count).map(move |bits| (0..count).filter(|part| bits >> part & 1 == 1).collect())
}

impl Case {
    fn of_part(&self, part: usize) -> impl Iterator<Item = (&String, &xattn::HostTensor<'static>)> {
        self.tensors.iter().filter(move |(name, _)| name.starts_with(self.parts[part]))
    }

    /// The tensors of these parts under a prefix, with other numbers where `other` says so.
    fn copy(&self, parts: impl IntoIterator<Item = usize>, prefix: &str, other: bool) -> Tensors {
        let tensors = parts.into_iter().flat_map(|part| self.of_part(part));
        let value = |name: &str, t: &xattn::HostTensor<'static>| {
            if other { tensor(&format!("another {name}"), t.shape()) } else { t.clone() }
        };
        tensors.map(|(name, t)| (format!("{prefix}{name}"), value(name, t))).collect()
    }

    fn open(&self, folder: &Folder, tensors: &Tensors) -> Checkpoint {
        write(&folder.join("model.safetensors"), tensors);
        if let Some(config) = &self.config {
            std::fs::write(folder.join("config.json"), config).unwrap();
        }
        Checkpoint::open(&folder.0, Some(self.family)).unwrap()
    }

    /// The names that are read with a prefix, and the notes; or the problems.
    fn read(&self, of: &Checkpoint, prefix: Option<&str>) -> Result<(BTreeSet<String>, Vec<String>), Vec<String>> {
        match of.bridges(&Overrides { prefix: prefix.map(String::from), ..self.overrides.clone() }) {
            Ok(bridges) => Ok((bridges.names.into_keys().collect(), bridges.notes)),
            Err(Error::Weights { problems, .. }) => Err(problems),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn each_listed_prefix_reads_its_copy() {
    for case in cases() {
        let all: Vec<usize> = (0..case.parts.len()).collect();
        for (main, copy) in [("", "ema."), ("model.", "model_ema.")] {
            // All sets for copies in the model; parts, single and together, for those beside it.
            let beside = |twice: &BTreeSet<usize>| twice.len() == 1 || twice.len() == all.len();
            for twice in sets(all.len()).filter(|twice| main.is_empty() || beside(twice)) {
                let tensors = all_of(&case, &all, main, &twice, copy);
                let folder = Folder::new("copies");
                let checkpoint = case.open(&folder, &tensors);
                let about = format!("{} {copy} {twice:?}", case.family.name());
                let problems = case.read(&checkpoint, None).expect_err(&about);
                let mut listed: BTreeSet<String> = [main, copy].map(String::from).into();
                for problem in &problems {
                    let (_, places) =
                        problem.split_once("different weights at ").unwrap_or_else(|| panic!("{about}: {problem}"));
                    let places = places.strip_suffix("; --prefix chooses").unwrap().split(" (in ").next().unwrap();
                    listed.extend(places.split(" and ").map(String::from));
                }
                // Each copy of a part is listed, blocks that differ alike once.
                assert!(listed.iter().any(|prefix| prefix.len() > copy.len() && prefix.starts_with(copy)), "{about}");
                for prefix in &listed {
                    let of_copy = prefix.starts_with(copy);
                    let from = |part: usize| if of_copy && twice.contains(&part) { copy } else { main };
                    let expected: BTreeSet<String> = all
                        .iter()
                        .flat_map(|&part| case.of_part(part).map(move |(name, _)| format!("{}{name}", from(part))))
                        .collect();
                    let about = format!("{about} --prefix {prefix}");
                    let (names, notes) =
                        case.read(&checkpoint, Some(prefix)).unwrap_or_else(|e| panic!("{about}: {e:?}"));
                    let differ: Vec<_> = names.symmetric_difference(&expected).take(4).collect();
                    assert!(differ.is_empty(), "{about}: {differ:?}");
                    // What was not asked for is said.
                    let elsewhere = all
                        .iter()
                        .any(|&part| !format!("{}{}", from(part), case.parts[part]).starts_with(prefix.as_str()));
                    let end = format!(", not below the prefix {prefix}: taken together");
                    let said = notes.iter().any(|note| note.ends_with(&end));
                    assert_eq!(said, elsewhere, "{about}: {notes:?}");
                }
                for part in case.parts.iter().filter(|_| twice.len() == 1) {
                    for nowhere in [format!("nonsense.{part}"), format!("{copy}nonsense.")] {
                        let end = format!(": none below the prefix {nowhere}, but at ");
                        let problems = case.read(&checkpoint, Some(&nowhere)).expect_err(&about);
                        assert!(problems.iter().all(|problem| problem.contains(&end)), "{about}: {problems:?}");
                    }
                }
            }
        }
    }
}

fn all_of(case: &Case, all: &[usize], main: &str, twice: &BTreeSet<usize>, copy: &str) -> Tensors {
    let mut tensors = case.copy(all.iter().copied(), main, false);
    tensors.extend(case.copy(twice.iter().copied(), copy, true));
    tensors
}

/// Each part is there once, in one of two trees.
#[test]
fn parts_of_two_trees_are_said_to_be_taken_together() {
    for case in cases() {
        let count = case.parts.len();
        for of_teacher in sets(count).filter(|parts| parts.len() < count) {
            // Heads beside no Q-Former are not read, which is said.
            let heads = case.parts.iter().position(|part| *part == "query_tokens").is_some();
            if heads && of_teacher != BTreeSet::from([0]) {
                continue;
            }
            let student = (0..count).filter(|part| !of_teacher.contains(part));
            let mut tensors = case.copy(student, "student.", false);
            tensors.extend(case.copy(of_teacher.iter().copied(), "teacher.", false));
            let folder = Folder::new("trees");
            let checkpoint = case.open(&folder, &tensors);
            let about = format!("{} {of_teacher:?}", case.family.name());
            let (names, notes) = case.read(&checkpoint, None).unwrap_or_else(|e| panic!("{about}: {e:?}"));
            assert_eq!(names.len(), tensors.len(), "{about}");
            let said = notes.iter().filter(|note| note.ends_with(": taken together"));
            assert!(said.count() > 0, "{about}: {notes:?}");
        }
    }
}
