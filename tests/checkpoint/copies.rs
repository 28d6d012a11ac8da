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
    let xgen =
        all([below("vision_tokenizer.", &open_flamingo_resampler()), dense("vision_tokenizer.projection", 20, 16)]);
    let of_xgen = ["vision_tokenizer.", "vision_tokenizer.projection."];
    let of_heads = Overrides { heads: Some(8), ..Overrides::default() };
    let connector = ["model.connector.modality_projection.", "model.connector.perceiver_resampler."];
    vec![
        case(Family::Blip2, blip2(), Some(qformer_config("blip-2")), &of_blip2, &usual),
        case(Family::InstructBlip, instructblip(), Some(qformer_config("instructblip")), &of_instruct, &usual),
        case(Family::Lavis, lavis, None, &of_lavis, &qformer),
        case(Family::OpenFlamingo, flamingo(open[0], [open[1], open[2]]), None, &open, &usual),
        case(Family::OpenFlamingo, flamingo(lucidrains[0], [lucidrains[1], lucidrains[2]]), None, &lucidrains, &usual),
        case(Family::XgenMm, xgen, None, &of_xgen, &of_heads),
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
        // Of parts within each other, a tensor is the inner one's.
        let of = |name: &str| {
            (0..self.parts.len()).filter(|&p| name.starts_with(self.parts[p])).max_by_key(|&p| self.parts[p].len())
        };
        self.tensors.iter().filter(move |(name, _)| of(name) == Some(part))
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

/// The names of the projections and queries that are read, and the notes; or the error.
fn projections(tensors: &Tensors, family: Family, prefix: Option<&str>) -> Result<(Vec<String>, Vec<String>), String> {
    let heads = if family == Family::XgenMm { 8 } else { 2 };
    let overrides = Overrides { prefix: prefix.map(String::from), heads: Some(heads), ..Overrides::default() };
    opened("projections", tensors, None, Some(family), &overrides, |_, b| {
        let weight = |name: &&String| name.ends_with("ion.weight") || name.ends_with("itm_head.weight");
        (b.names.keys().filter(weight).cloned().collect(), b.notes.clone())
    })
}

fn other(tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(name, t)| (name.clone(), tensor(&format!("other {name}"), t.shape()))).collect()
}

/// A projection within the resampler's module is a part of its own.
#[test]
fn the_projection_of_a_resampler() {
    let of = |tensors: &Tensors, prefix| projections(tensors, Family::XgenMm, prefix);
    let at = "vision_tokenizer.projection";
    let (resampler, shared) = (below("vision_tokenizer.", &open_flamingo_resampler()), dense(at, 20, 16));
    let read = || vec![format!("{at}.weight")];
    let not_below = |part, at, wanted| vec![format!("{part} at {at}., not below the prefix {wanted}: taken together")];
    // An EMA of the resampler alone, or of the projection alone.
    let ema = all([resampler.clone(), shared.clone(), below("ema.", &other(&resampler))]);
    assert_eq!(of(&ema, Some("ema.")), Ok((read(), not_below("projection", at, "ema."))));
    assert_eq!(of(&ema, Some("")), Ok((read(), vec![])));
    let ema = all([resampler.clone(), shared.clone(), below("ema.", &other(&shared))]);
    let error = format!("projection: different weights at {at}. and ema.{at}. (in bias); --prefix chooses");
    assert_eq!(of(&ema, None), Err(format!(". (xgen-mm): {error}")));
    let of_ema = vec![format!("ema.{at}.weight")];
    assert_eq!(of(&ema, Some("ema.")), Ok((of_ema, not_below("resampler", "vision_tokenizer", "ema."))));
    // Two resamplers share one, or the only one has it elsewhere.
    let two = all([below("student.", &resampler), below("teacher.", &other(&resampler)), shared.clone()]);
    assert_eq!(of(&two, Some("student.")), Ok((read(), not_below("projection", at, "student."))));
    let elsewhere = all([below("model.", &resampler), shared.clone()]);
    let note = format!("resampler at model.vision_tokenizer. and projection at {at}.: taken together");
    assert_eq!(of(&elsewhere, None), Ok((read(), vec![note.clone()])));
    assert_eq!(of(&elsewhere, Some("")), Ok((read(), vec![note])));
    // Of equal copies one has it; another resampler's is taken for a prefix that chooses, and said.
    let equal = all([below("a.", &resampler), below("model.", &all([resampler.clone(), shared.clone()]))]);
    assert_eq!(of(&equal, None), Ok((vec![format!("model.{at}.weight")], vec![])));
    let another = all([resampler.clone(), below("ema.", &other(&all([resampler, shared])))]);
    let note = format!("resampler at vision_tokenizer. and projection at ema.{at}.: taken together");
    assert_eq!(of(&another, Some("")), Ok((vec![format!("ema.{at}.weight")], vec![note])));
}

/// Heads outside the Q-Former's own module.
#[test]
fn heads_outside_the_module_of_the_qformer() {
    let of = |tensors: &Tensors, prefix| projections(tensors, Family::Blip2, prefix);
    let heads = |name: &str| ["language_projection.", "itm_head."].iter().any(|head| name.starts_with(head));
    let (shared, own): (Tensors, Tensors) = blip2()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("vision_projection.") && !name.starts_with("text_projection."))
        .partition(|(name, _)| heads(name));
    let read = |prefix: &str| ["itm_head", "language_projection"].map(|head| format!("{prefix}{head}.weight")).to_vec();
    let parts = ["language projection at language_projection.", "matching head at itm_head."];
    let together = |begin: &str, end: &str| parts.map(|part| format!("{begin}{part}{end}: taken together")).to_vec();
    let around = all([below("bridge.", &own), shared.clone()]);
    let expected = Ok((read(""), together("Q-Former at bridge.qformer. and ", "")));
    assert_eq!(of(&around, None), expected);
    // What has other tensors, another width or no bias is no head of this Q-Former.
    let mut foreign = dense("clip.text_projection", 6, 16);
    foreign.extend(dense("clip.encoder", 6, 16));
    foreign.extend(dense("vision_projection", 6, 12));
    foreign.insert("text_projection.weight".into(), tensor("t", &[16, 16]));
    let (names, mut notes) = of(&all([around, foreign]), None).unwrap();
    let unread = "not read, though a Q-Former may have it: clip.text_projection., text_projection., vision_projection.";
    assert_eq!((names, notes.pop()), (read(""), Some(unread.into())));
    // In a module beside the Q-Former's that holds nothing else.
    let beside = all([below("bridge.", &own), below("heads.", &shared)]);
    let notes = parts
        .map(|part| format!("Q-Former at bridge.qformer. and {}: taken together", part.replace("at ", "at heads.")));
    assert_eq!(of(&beside, None), Ok((read("heads."), notes.to_vec())));
    // Two Q-Formers share them.
    let two = all([below("student.", &own), below("teacher.", &other(&own)), shared.clone()]);
    assert_eq!(of(&two, Some("student.")), Ok((read(""), together("", ", not below the prefix student."))));
    // An EMA of heads outside the module is a candidate.
    let ema = all([below("bridge.", &own), shared.clone(), below("ema.", &other(&shared))]);
    let error = of(&ema, None).unwrap_err();
    assert!(
        error.contains(
            "language projection: different weights at language_projection. and ema.language_projection. (in "
        ),
        "{error}"
    );
    // Equal copies: each part beside any of them. Another Q-Former's for a prefix that chooses.
    for main in ["a.", ""] {
        let equal = all([below(main, &own), below("model.", &all([own.clone(), shared.clone()]))]);
        assert_eq!(of(&equal, None), Ok((read("model."), vec![])), "{main}");
        let another = all([below(main, &own), below("model.", &other(&all([own.clone(), shared.clone()])))]);
        let (names, notes) = of(&another, Some(main)).unwrap();
        assert_eq!(names, read("model."), "{main}");
        assert!(notes.iter().all(|note| note.ends_with("taken together")) && notes.len() == 2, "{notes:?}");
    }
}

/// An EMA of some tensors of a part.
#[test]
fn partial_copies() {
    let block = "lang_encoder.gated_cross_attn_layers.0.";
    let model = all([below("perceiver.", &open_flamingo_resampler()), below(block, &open_flamingo_block())]);
    for (part, place, inner) in [
        ("resampler", "perceiver.", "layers.1.0.to_q.weight"),
        ("gated block 0", block, "attn.to_out.weight"),
        ("gated block 0", block, "attn_gate"),
    ] {
        for copy in ["ema.", "a_copy."] {
            let name = format!("{place}{inner}");
            let shape = model[&name].shape();
            let ema = xattn::HostTensor::from_slice(&vec![9f32; shape.iter().product()], shape).unwrap();
            let both = all([model.clone(), below(copy, &Tensors::from([(name.clone(), ema)]))]);
            let read = |prefix: Option<&str>| {
                let overrides = Overrides { prefix: prefix.map(String::from), ..Overrides::default() };
                opened("partial", &both, None, None, &overrides, |_, b| b.names.len())
            };
            let error =
                format!("{part}: different weights at {place} and {copy}{place} (in {inner}); --prefix chooses");
            assert_eq!(read(None), Err(format!(". (open-flamingo): {error}")));
            assert_eq!(read(Some("")), Ok(model.len()));
            assert!(read(Some(copy)).unwrap_err().contains(&format!("{copy}{place}")), "{name}");
        }
        // Two models in a list: their numbers are not those of blocks.
        let name = format!("{place}{inner}");
        let shape = model[&name].shape();
        let other = xattn::HostTensor::from_slice(&vec![9f32; shape.iter().product()], shape).unwrap();
        let both = all([below("0.", &model), below("1.", &Tensors::from([(name, other)]))]);
        let said = opened("list", &both, None, None, &Overrides::default(), |_, b| b.names.len());
        let error = format!("{part}: different weights at 0.{place} and 1.{place} (in {inner}); --prefix chooses");
        assert_eq!(said, Err(format!(". (open-flamingo): {error}")));
    }
}

/// A block that is equal in two trees does not hide that the others and the projector are not.
#[test]
fn an_equal_block_in_two_trees() {
    let [one, other] = [1, 3].map(|i| below(&format!("language_model.model.layers.{i}."), &mllama_layer()));
    let projector = dense("multi_modal_projector", 32, 20);
    let teacher = below("teacher.", &all([projector, one.clone()]));
    let tensors = all([teacher, below("student.", &all([one, other]))]);
    let overrides = Overrides { block_heads: Some(4), ..Overrides::default() };
    let notes = opened("trees", &tensors, None, None, &overrides, |_, b| b.notes.clone());
    let note = "projector at teacher.multi_modal_projector. and gated blocks at student.language_model.model.layers.3.: \
        taken together";
    assert_eq!(notes, Ok(vec![note.to_string()]));
}

/// A prefix may be copied from the file, with the wrappers that are in it.
#[test]
fn a_prefix_with_wrappers() {
    let tensors = all([instructblip(), below("model_ema.module.", &other(&instructblip()))]);
    for prefix in ["model_ema.module.", "model_ema.module", "model_ema.", "model_ema", "model_ema.module.qformer."] {
        let overrides = Overrides { prefix: Some(prefix.into()), heads: Some(2), ..Overrides::default() };
        let names =
            opened("wrapped", &tensors, None, None, &overrides, |_, b| b.names.keys().cloned().collect::<Vec<_>>());
        let names = names.unwrap_or_else(|e| panic!("{prefix}: {e}"));
        let of_ema = names.iter().filter(|name| name.starts_with("model_ema.")).count();
        assert_eq!(of_ema, names.len(), "{prefix}");
    }
    let overrides = Overrides { prefix: Some("ema.module.".into()), heads: Some(2), ..Overrides::default() };
    let error = opened("wrapped", &tensors, None, None, &overrides, |_, _| ()).unwrap_err();
    assert!(error.contains("none below the prefix ema., but at "), "{error}");
}

/// The top holds some parts, a copy all of them: an empty prefix takes the others from the copy, and
/// says so.
#[test]
fn parts_that_the_top_lacks_are_taken_from_a_copy() {
    for case in cases() {
        let all_parts: Vec<usize> = (0..case.parts.len()).collect();
        for top in sets(all_parts.len()).filter(|top| top.len() < all_parts.len()) {
            let tensors =
                all([case.copy(all_parts.iter().copied(), "ema.", false), case.copy(top.iter().copied(), "", true)]);
            let folder = Folder::new("copies-top");
            let checkpoint = case.open(&folder, &tensors);
            let about = format!("{} {top:?} of {:?}", case.family.name(), case.parts);
            let expected: BTreeSet<String> = all_parts
                .iter()
                .flat_map(|&part| {
                    let at = if top.contains(&part) { "" } else { "ema." };
                    case.of_part(part).map(move |(name, _)| format!("{at}{name}"))
                })
                .collect();
            let (names, notes) = case.read(&checkpoint, Some("")).unwrap_or_else(|e| panic!("{about}: {e:?}"));
            let differ: Vec<_> = names.symmetric_difference(&expected).take(4).collect();
            assert!(differ.is_empty(), "{about}: {differ:?}");
            assert!(notes.iter().any(|note| note.ends_with("taken together")), "{about}: {notes:?}");
        }
    }
}
