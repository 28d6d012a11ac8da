//! Which tensors are read: copies, parts saved alone, second names, and what lies beside.

use xattn::checkpoint::{Checkpoint, Family, Overrides, Provenance};

use crate::small::*;

#[test]
fn two_candidates_are_an_error_and_a_prefix_chooses() {
    let of = |tensors: &Tensors, prefix: Option<&str>| {
        let overrides = Overrides { prefix: prefix.map(String::from), ..Overrides::default() };
        opened("copies", tensors, None, None, &overrides, |_, bridges| {
            bridges.names.keys().next().unwrap().split('.').next().unwrap().to_string()
        })
    };
    // A copy that differs in one number of the last tensor.
    let changed = |tensors: &Tensors| -> Tensors {
        let (name, t) = tensors.iter().next_back().unwrap();
        let mut copy = tensors.clone();
        copy.insert(name.clone(), tensor("changed", t.shape()));
        copy
    };
    let (teacher, student) = (below("teacher.", &blip2()), below("student.", &changed(&blip2())));
    let error = of(&all([teacher.clone(), student]), None).unwrap_err();
    let wanted = "contrastive heads: different weights at student.vision_projection. and teacher.vision_projection. (in weight); --prefix chooses";
    assert!(error.contains(wanted), "{error}");
    let other: Tensors = renamed(&blip2(), &[])
        .into_iter()
        .map(|(name, t)| {
            let changed = if name.starts_with("qformer.") { tensor(&format!("other {name}"), t.shape()) } else { t };
            (format!("student.{name}"), changed)
        })
        .collect();
    let both = all([teacher, other]);
    let error = of(&both, None).unwrap_err();
    let wanted = "Q-Former: different weights at student.qformer. and teacher.qformer. (in encoder.layer.0.attention.attention.key.bias); \
        --prefix chooses";
    assert!(error.contains(wanted), "{error}");
    assert_eq!(of(&both, Some("teacher.")).as_deref(), Ok("teacher"));
    assert_eq!(of(&both, Some("student")).as_deref(), Ok("student"));
    let error = of(&both, Some("ema.")).unwrap_err();
    assert!(
        error.contains("Q-Former: none below the prefix ema., but at student.qformer., teacher.qformer."),
        "{error}"
    );
    // An EMA beside a model whose own names have no prefix.
    let model = all([
        below("perceiver.", &open_flamingo_resampler()),
        below("lang_encoder.transformer.blocks.0.gated_cross_attn_layer.", &open_flamingo_block()),
        below("lang_encoder.gated_cross_attn_layers.0.", &open_flamingo_block()),
    ]);
    let ema: Tensors = model
        .iter()
        .map(|(name, t)| (format!("ema.{name}"), tensor(&format!("ema {}", t.elements()), t.shape())))
        .collect();
    let both = all([model, ema]);
    let error = of(&both, None).unwrap_err();
    assert!(
        error.contains("resampler: different weights at perceiver. and ema.perceiver. (in latents); --prefix chooses"),
        "{error}"
    );
    assert_eq!(of(&both, Some("")).as_deref(), Ok("lang_encoder"));
    assert_eq!(of(&both, Some("ema.")).as_deref(), Ok("ema"));
    // A copy of one part alone, beside the only one of the other.
    let resampler = open_flamingo_resampler();
    let moved = resampler.iter().map(|(name, t)| (format!("ema_perceiver.{name}"), tensor("ema", t.shape()))).collect();
    let block = below("lang_encoder.gated_cross_attn_layers.0.", &open_flamingo_block());
    let both = all([below("perceiver.", &resampler), moved, block]);
    let chosen = |prefix: &str| {
        let overrides = Overrides { prefix: Some(prefix.into()), ..Overrides::default() };
        opened("two-perceivers", &both, None, None, &overrides, |_, b| {
            let first = b.names.keys().find(|name| name.ends_with("latents")).cloned();
            (first, b.gated_blocks.len(), b.notes.clone())
        })
    };
    let latents = |of: &str| Some(format!("{of}.latents"));
    assert_eq!(chosen(""), Ok((latents("perceiver"), 1, vec![])));
    for of in ["perceiver", "ema_perceiver"] {
        let note = format!(
            "gated blocks at lang_encoder.gated_cross_attn_layers.0., not below the prefix {of}.: taken together"
        );
        assert_eq!(chosen(&format!("{of}.")), Ok((latents(of), 1, vec![note])));
    }
    // Modules of other names, a copy below the model itself, and a part of one.
    let said = |name: &str, tensors: &Tensors, family: Family, prefix: Option<&str>| {
        let overrides = Overrides { prefix: prefix.map(String::from), heads: Some(2), ..Overrides::default() };
        opened(name, tensors, None, Some(family), &overrides, |_, b| b.names.keys().next().cloned().unwrap())
    };
    let named = |name: &str, t: &Tensors| -> Tensors {
        t.keys().map(|key| (format!("{name}.{key}"), tensor(name, t[key].shape()))).collect()
    };
    let video = all([below("perceiver.", &resampler), named("video_perceiver_2", &resampler)]);
    let error = said("video", &video, Family::OpenFlamingo, None).unwrap_err();
    let fault = "resampler: different weights at perceiver. and video_perceiver_2. (in latents); --prefix chooses";
    assert!(error.ends_with(fault), "{error}");
    let second = said("video", &video, Family::OpenFlamingo, Some("video_perceiver_2."));
    assert_eq!(second.as_deref(), Ok("video_perceiver_2.latents"));
    let nested = all([below("model.perceiver.", &resampler), named("model.ema.perceiver", &resampler)]);
    for (prefix, first) in [("model.", "model.perceiver.latents"), ("model.ema.", "model.ema.perceiver.latents")] {
        assert_eq!(said("nested", &nested, Family::OpenFlamingo, Some(prefix)).as_deref(), Ok(first));
    }
    let connector = idefics2();
    let bare: Tensors =
        connector.clone().into_iter().filter(|(name, _)| name.starts_with("perceiver_resampler.")).collect();
    let both = all([below("model.connector.", &connector), named("old", &bare)]);
    let error = said("connectors", &both, Family::Idefics2, None).unwrap_err();
    assert!(
        error.contains("resampler: at model.connector. and at old.perceiver_resampler.; --prefix chooses"),
        "{error}"
    );
    for (prefix, first) in [("model.", "model.connector.modality"), ("old.", "old.perceiver_resampler.latents")] {
        assert!(said("connectors", &both, Family::Idefics2, Some(prefix)).unwrap().starts_with(first));
    }
    let fault = "resampler: none below the prefix lang_encoder., but at perceiver., ema_perceiver.";
    assert!(chosen("lang_encoder.").unwrap_err().ends_with(fault), "{:?}", chosen("lang_encoder."));
}

#[test]
fn an_alias_is_no_second_parameter() {
    let (resampler, block) = (open_flamingo_resampler(), open_flamingo_block());
    let tensors = all([
        below("perceiver.", &resampler),
        below("lang_encoder.transformer.blocks.0.gated_cross_attn_layer.", &block),
        below("lang_encoder.gated_cross_attn_layers.0.", &block),
    ]);
    let (names, aliases) = opened("aliases", &tensors, None, None, &Overrides::default(), |_, bridges| {
        (bridges.names.len(), bridges.aliases.clone())
    })
    .unwrap();
    assert_eq!((names, aliases.len()), (resampler.len() + 2 * block.len(), block.len()));
    assert!(aliases.iter().all(|name| name.starts_with("lang_encoder.transformer.")), "{aliases:?}");
    // A weight of one block that was saved once, as another block's.
    let mut tied = all([0, 1].map(|i| below(&format!("lang_encoder.gated_cross_attn_layers.{i}."), &block)));
    let [kept, other] = [0, 1].map(|i| format!("lang_encoder.gated_cross_attn_layers.{i}.attn.to_kv.weight"));
    tied.remove(&other).unwrap();
    let folder = Folder::new("tied-blocks");
    write_tied(&folder.join("model.safetensors"), &tied, Some([&other, &kept]));
    let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
    let counted = checkpoint.parameters(&checkpoint.bridges(&Overrides::default()).unwrap()).unwrap();
    assert_eq!(counted["gated blocks"], tied.values().map(|t| t.elements()).sum::<usize>());
    // A language-model head that is tied to the words, or that has weights of its own.
    let norm: Tensors = [("weight", "n.w"), ("bias", "n.b")]
        .map(|(n, v)| (format!("Qformer.cls.predictions.transform.LayerNorm.{n}"), tensor(v, &[16])))
        .into();
    let head = |values: &str| -> Tensors {
        let decoder = [("decoder.weight", values, vec![9, 16]), ("decoder.bias", "b", vec![9]), ("bias", "b", vec![9])];
        let decoder = decoder.map(|(n, v, shape)| (format!("Qformer.cls.predictions.{n}"), tensor(v, &shape)));
        all([lavis(), norm.clone(), dense("Qformer.cls.predictions.transform.dense", 16, 16), decoder.into()])
    };
    for (values, expected) in [("words", 16 * 17 + 32 + 9), ("own", 16 * 17 + 32 + 9 + 9 * 16)] {
        let overrides = Overrides { heads: Some(2), ..Overrides::default() };
        let counted = opened("tied", &head(values), None, None, &overrides, |checkpoint, bridges| {
            checkpoint.parameters(bridges).unwrap()["language-model head"]
        });
        assert_eq!(counted, Ok(expected), "{values}");
    }
}

#[test]
fn parts_that_were_saved_alone() {
    let look = |tensors: &Tensors, config: Option<&str>, family: Option<Family>| {
        opened(
            "alone",
            tensors,
            config,
            family,
            &Overrides { heads: Some(2), ..Overrides::default() },
            |checkpoint, b| {
                let mut parts = Vec::new();
                parts.extend(b.resampler.as_ref().map(|_| "resampler"));
                parts.extend(b.projector.as_ref().map(|_| "projector"));
                parts.extend(b.gated_blocks.iter().map(|_| "gated block"));
                parts.extend(
                    b.qformer
                        .as_ref()
                        .map(|(_, w)| if w.query_tokens.is_some() { "Q-Former" } else { "Q-Former without queries" }),
                );
                (checkpoint.family().name(), parts)
            },
        )
    };
    let (resampler, block) = idefics();
    let block_of_flamingo = below("lang_encoder.model.layers.3.gated_cross_attn_layer.", &open_flamingo_block());
    assert_eq!(look(&block_of_flamingo, None, None), Ok(("open-flamingo", vec!["gated block"])));
    assert_eq!(look(&open_flamingo_block(), None, None), Ok(("open-flamingo", vec!["gated block"])));
    assert_eq!(look(&resampler, None, None), Ok(("idefics", vec!["resampler"])));
    assert_eq!(look(&below("model.perceiver_resampler.", &resampler), None, None), Ok(("idefics", vec!["resampler"])));
    let overrides = Overrides { block_heads: Some(2), ..Overrides::default() };
    let one = opened("block", &block, None, None, &overrides, |checkpoint, b| {
        (checkpoint.family().name(), b.gated_blocks.len(), b.gated_blocks[0].prefix.clone())
    });
    assert_eq!(one, Ok(("idefics", 1, String::new())));
    assert_eq!(look(&mllama_layer(), None, None), Ok(("mllama", vec!["gated block"])));
    assert_eq!(look(&mllama_meta_layer(), None, None), Ok(("mllama", vec!["gated block"])));
    let projector = renamed(&dense("p", 32, 20), &[("p.", "")]);
    assert_eq!(look(&projector, None, Some(Family::Mllama)), Ok(("mllama", vec!["projector"])));
    // Lists of gated blocks.
    let list = |block: &Tensors, outer: &str| all([0, 1].map(|i| below(&format!("{outer}{i}."), block)));
    let blocks = vec!["gated block"; 2];
    for outer in ["", "module."] {
        assert_eq!(look(&list(&open_flamingo_block(), outer), None, None), Ok(("open-flamingo", blocks.clone())));
        let inner = below("gated_cross_attn_layer.", &open_flamingo_block());
        assert_eq!(look(&list(&inner, outer), None, None), Ok(("open-flamingo", blocks.clone())));
        assert_eq!(look(&list(&idefics().1, outer), None, None), Ok(("idefics", blocks.clone())));
        for layer in [mllama_layer(), mllama_meta_layer()] {
            assert_eq!(look(&list(&layer, outer), None, None), Ok(("mllama", blocks.clone())));
        }
    }
    // 2 heads of 8 with 1 K/V head, which only a configuration tells.
    let connector = opened("connector", &idefics2(), Some(IDEFICS2_CONFIG), None, &Overrides::default(), |_, b| {
        b.resampler.as_ref().map(|(c, _)| (c.heads, c.kv_heads, c.input_mlp.is_some()))
    });
    assert_eq!(connector, Ok(Some((2, 1, true))));
    let perceiver: Tensors = idefics2()
        .into_iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("perceiver_resampler.")?.to_string(), t)))
        .collect();
    let config = r#"{"model_type": "idefics2_perceiver", "hidden_size": 16, "resampler_n_latents": 3, "resampler_depth": 1,
        "resampler_n_heads": 2, "resampler_head_dim": 8, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}"#;
    let perceiver = opened("perceiver", &perceiver, Some(config), None, &Overrides::default(), |_, b| {
        b.resampler.as_ref().map(|(c, _)| (c.heads, c.kv_heads, c.norm.eps, c.input_mlp.is_some()))
    });
    assert_eq!(perceiver, Ok(Some((2, 1, 1e-5, false))));

    // transformers' Q-Former classes save their own configuration.
    let of = |tensors: Tensors, module: &str| -> Tensors {
        tensors.into_iter().filter_map(|(name, t)| Some((name.strip_prefix(module)?.to_string(), t))).collect()
    };
    let alone = |kind: &str| {
        format!(
            r#"{{"model_type": "{kind}", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "encoder_hidden_size": 12}}"#
        )
    };
    // Without one, K/V heads have the query heads' width, whose number is an option.
    let connector =
        opened("connector", &idefics2(), None, None, &Overrides { heads: Some(2), ..Overrides::default() }, |_, b| {
            b.resampler.as_ref().map(|(c, _)| (c.heads, c.kv_heads))
        });
    assert_eq!(connector, Ok(Some((2, 1))));
    let without = "Q-Former without queries";
    let blip2 = of(blip2(), "qformer.");
    assert_eq!(look(&blip2, Some(&alone("blip_2_qformer")), None), Ok(("blip-2", vec![without])));
    assert_eq!(look(&blip2, None, Some(Family::Blip2)), Ok(("blip-2", vec![without])));
    assert_eq!(look(&below("qformer.", &blip2), None, Some(Family::Blip2)), Ok(("blip-2", vec![without])));
    let instruct = of(instructblip(), "qformer.");
    assert_eq!(look(&instruct, Some(&alone("instructblip_qformer")), None), Ok(("instructblip", vec![without])));
    assert_eq!(look(&of(lavis(), "Qformer."), None, Some(Family::Lavis)), Ok(("lavis", vec![without])));
    assert_eq!(look(&of(lavis(), "Qformer.bert."), None, Some(Family::Lavis)), Ok(("lavis", vec![without])));
}

#[test]
fn classes_with_one_projection() {
    for (kept, left_out) in [("vision_projection.", "text_projection."), ("text_projection.", "vision_projection.")] {
        let mut tensors = blip2();
        tensors.retain(|name, _| !name.starts_with(left_out));
        let found = opened("one", &tensors, Some(&qformer_config("blip-2")), None, &Overrides::default(), |_, b| {
            [b.image_projection.is_some(), b.text_projection.is_some()]
        });
        assert_eq!(found, Ok([kept.starts_with("vision"), kept.starts_with("text")]));
    }
}

#[test]
fn minigpt4s_projection_and_what_nobody_reads() {
    let mut tensors = renamed(&lavis(), &[("opt_proj", "llama_proj")]);
    tensors.extend(dense("ln_vision", 12, 12));
    tensors.extend(dense("audio_llama_proj", 12, 12));
    let overrides = Overrides { heads: Some(2), ..Overrides::default() };
    let (projection, notes, origins) = opened("llama_proj", &tensors, None, None, &overrides, |_, b| {
        (b.language_projection.as_ref().map(|w| w.weight[0].shape().to_vec()), b.notes.clone(), b.origins.clone())
    })
    .unwrap();
    assert_eq!(projection, Some(vec![24, 16]));
    assert_eq!(notes, ["not read, though beside the Q-Former: audio_llama_proj (2 tensors)"]);
    let of =
        |value: &str| origins.iter().find(|o| o.value == value).map(|o| (o.shown.as_str(), o.from.clone())).unwrap();
    assert_eq!(of("heads"), ("2", Provenance::Option("--heads")));
    assert_eq!(of("queries"), ("4", Provenance::Shape("query_tokens".into())));
    assert_eq!(of("activation"), ("gelu", Provenance::Assumed("what its public library takes".into())));
}

/// Video-LLaMA: a second Q-Former reads the first one's output; the projection follows.
#[test]
fn another_qformer_before_the_projection() {
    let mut tensors = renamed(&lavis(), &[("opt_proj", "llama_proj")]);
    tensors.extend(below("video_Qformer.bert.", &qformer_encoder()));
    let of = |prefix: Option<&str>| {
        let overrides = Overrides { heads: Some(2), prefix: prefix.map(String::from), ..Overrides::default() };
        opened("video", &tensors, None, None, &overrides, |_, b| (b.language_projection.is_some(), b.notes.clone()))
    };
    let wanted = ". (lavis): Q-Former: at Qformer.bert., and another at video_Qformer., which may come before the projection; \
        --prefix Qformer.bert. reads the first all the same";
    assert_eq!(of(None), Err(wanted.to_string()));
    let left_open =
        |part: &str, at: &str| format!("{part} at {at}, not below the prefix Qformer.bert.: taken together");
    let notes = [
        left_open("embeddings", "query_tokens"),
        left_open("language projection", "llama_proj."),
        format!("not read, though beside the Q-Former: video_Qformer ({} tensors)", qformer_encoder().len()),
    ];
    assert_eq!(of(Some("Qformer.bert.")), Ok((true, notes.to_vec())));
}

/// A tensor is read even if it was saved only under its other name.
#[test]
fn a_tied_tensor_under_anothers_name() {
    let folder = Folder::new("tied-elsewhere");
    let tensors = renamed(&lavis(), &[("Qformer.bert.embeddings.LayerNorm.weight", "another.norm")]);
    let tied = ["Qformer.bert.embeddings.LayerNorm.weight", "another.norm"];
    write_tied(&folder.join("model.safetensors"), &tensors, Some(tied));
    let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
    let bridges = checkpoint.bridges(&Overrides { heads: Some(2), ..Overrides::default() }).unwrap();
    assert_eq!(bridges.notes, Vec::<String>::new());
}

#[test]
fn parts_of_different_copies_are_not_mixed() {
    let of = |tensors: &Tensors, prefix: Option<&str>| {
        let overrides = Overrides { prefix: prefix.map(String::from), ..Overrides::default() };
        opened("mixed", tensors, None, None, &overrides, |_, b| b.language_projection.is_some())
    };
    // The copy at the top has no projection: the other copy's is taken, which is said.
    let mut top = blip2();
    top.retain(|name, _| !name.starts_with("language_projection"));
    let other: Tensors =
        blip2().iter().map(|(name, t)| (format!("ema.{name}"), tensor(&format!("ema {name}"), t.shape()))).collect();
    let both = all([top, other]);
    assert_eq!((of(&both, Some("")), of(&both, Some("ema."))), (Ok(true), Ok(true)));
    // Of each part the only one that there is: that is said.
    let block = "lang_encoder.model.layers.0.gated_cross_attn_layer.";
    let notes = |tensors: &Tensors, prefix: Option<&str>| {
        let overrides = Overrides { prefix: prefix.map(String::from), ..Overrides::default() };
        opened("mixed", tensors, None, None, &overrides, |_, b| b.notes.clone())
    };
    for [one, other] in [["teacher.", "student."], ["vision.", ""], ["model.teacher.", "model.student."]] {
        let [one, other] = [format!("{one}perceiver."), format!("{other}{block}")];
        let both = all([below(&one, &open_flamingo_resampler()), below(&other, &open_flamingo_block())]);
        let wanted = format!("resampler at {one} and gated blocks at {other}: taken together");
        assert_eq!(notes(&both, None), Ok(vec![wanted]));
    }
    for (one, other) in [("perceiver.", block), ("model.perceiver.", &format!("model.{block}")), ("perceiver.", "x.")] {
        let both = all([below(one, &open_flamingo_resampler()), below(other, &open_flamingo_block())]);
        assert_eq!(notes(&both, None), Ok(vec![]));
    }
    // Blocks that two resamplers share: the prefix of one of them chooses.
    let another: Tensors = open_flamingo_resampler()
        .iter()
        .map(|(name, t)| (format!("audio.perceiver.{name}"), tensor("audio", t.shape())))
        .collect();
    let shared =
        all([below("vision.perceiver.", &open_flamingo_resampler()), another, below(block, &open_flamingo_block())]);
    let several = notes(&shared, None).unwrap_err();
    assert!(
        several.starts_with(
            ". (open-flamingo): resampler: different weights at audio.perceiver. and vision.perceiver. (in "
        ),
        "{several}"
    );
    let at =
        |resampler: &str| vec![format!("gated blocks at {block}, not below the prefix {resampler}: taken together")];
    for resampler in ["audio.perceiver.", "vision.perceiver."] {
        assert_eq!(notes(&shared, Some(resampler)), Ok(at(resampler)));
    }
}

/// Two Q-Formers with the same queries.
#[test]
fn copies_that_share_their_queries() {
    let teacher =
        blip2().into_iter().filter(|(name, _)| name.starts_with("qformer.") || name.starts_with("embeddings."));
    let teacher: Tensors = teacher.map(|(name, t)| (format!("teacher.{name}"), tensor("teacher", t.shape()))).collect();
    let tensors = all([blip2(), teacher]);
    let of = |prefix: Option<&str>| {
        let overrides = Overrides { prefix: prefix.map(String::from), ..Overrides::default() };
        opened("queries", &tensors, None, Some(Family::Blip2), &overrides, |_, b| {
            (b.names.contains_key("query_tokens"), b.notes.clone())
        })
    };
    let several = of(None).unwrap_err();
    let begins = ". (blip-2): Q-Former: different weights at qformer. and teacher.qformer. (in ";
    assert!(several.starts_with(begins) && several.ends_with("); --prefix chooses"), "{several}");
    let (read, notes) = of(Some("teacher.qformer.")).unwrap();
    assert!(read);
    let elsewhere =
        |(part, at): (&str, &str)| format!("{part} at {at}, not below the prefix teacher.qformer.: taken together");
    let expected = [
        ("embeddings", "query_tokens, teacher.embeddings."),
        ("language projection", "language_projection."),
        ("contrastive heads", "vision_projection., text_projection."),
        ("matching head", "itm_head."),
    ];
    assert_eq!(notes, expected.map(elsewhere));
}

/// The projection and the query tokens that are read with a prefix.
fn of_copies(tensors: &Tensors, prefix: &str) -> Result<Vec<String>, String> {
    let overrides = Overrides { prefix: Some(prefix.into()), ..Overrides::default() };
    opened("copies", tensors, None, None, &overrides, |_, b| {
        let read = |name: &&String| name.ends_with("_proj.bias") || name.ends_with("query_tokens");
        b.names.keys().filter(read).cloned().collect()
    })
}

/// Two projections of one Q-Former, as in a joined file: position in a list decides nothing.
#[test]
fn two_projections_of_one_qformer() {
    let named = |projection: &str, value: &str| -> Tensors {
        let tensors = blip2().into_iter().filter(|(name, _)| name.starts_with("language_projection."));
        tensors.map(|(name, t)| (name.replace("language_projection", projection), tensor(value, t.shape()))).collect()
    };
    let of = |tensors: &Tensors, prefix: Option<&str>| {
        let overrides = Overrides { prefix: prefix.map(String::from), ..Overrides::default() };
        opened("projections", tensors, None, None, &overrides, |_, b| {
            b.names.keys().find(|name| name.ends_with("_proj.bias") || *name == "language_projection.bias").cloned()
        })
    };
    let two = all([blip2(), named("opt_proj", "another")]);
    let wanted = ". (blip-2): language projection: different weights at language_projection. and opt_proj. (in bias); \
        --prefix chooses";
    assert_eq!(of(&two, None), Err(wanted.to_string()));
    // Two copies, each with two: the prefix of a projection chooses its copy.
    let named = |copy: &str| below(copy, &all([blip2(), named("opt_proj", copy)]));
    let student: Tensors = named("student.").iter().map(|(n, t)| (n.clone(), tensor(n, t.shape()))).collect();
    let copies = all([student, named("teacher.")]);
    let told = of_copies(&copies, "student.opt_proj");
    assert_eq!(told, Ok(["student.opt_proj.bias", "student.query_tokens"].map(String::from).to_vec()));
    for prefix in ["opt_proj.", "language_projection"] {
        assert_eq!(of(&two, Some(prefix)), Ok(Some(format!("{}.bias", prefix.trim_end_matches('.')))), "{prefix}");
    }
}
