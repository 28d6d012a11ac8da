//! Checkpoints that public users have, each of which once gave wrong numbers, or a refusal that did not say why.

use xattn::checkpoint::{Bridges, Checkpoint, Family, Files, Overrides, Provenance};
use xattn::ops::Activation;

use crate::small::*;

/// Opens tensors, with a configuration beside them or not.
fn opened<T>(
    name: &str,
    tensors: &Tensors,
    config: Option<&str>,
    family: Option<Family>,
    overrides: &Overrides,
    look: impl FnOnce(&Checkpoint, &Bridges<'_>) -> T,
) -> Result<T, String> {
    let folder = Folder::new(name);
    write(&folder.join("model.safetensors"), tensors);
    if let Some(config) = config {
        std::fs::write(folder.join("config.json"), config).unwrap();
    }
    let shown = |e: xattn::Error| {
        e.to_string().replace(&format!("{}/", folder.0.display()), "").replace(&folder.0.display().to_string(), ".")
    };
    let checkpoint = Checkpoint::open(&folder.0, family).map_err(shown)?;
    let bridges = checkpoint.bridges(overrides).map_err(shown)?;
    Ok(look(&checkpoint, &bridges))
}

/// The error of tensors and their configuration.
fn refused(name: &str, tensors: &Tensors, config: Option<&str>) -> String {
    opened(name, tensors, config, None, &Overrides::default(), |_, _| ()).expect_err("accepted")
}

/// Tensors and a configuration of each family that has one, the section in which its activation stands, and what ops compute there.
fn families() -> [(&'static str, Tensors, String, &'static str, bool); 5] {
    let idefics = idefics_checkpoint();
    let mllama = mllama_checkpoint();
    [
        ("idefics", idefics, IDEFICS_CONFIG.into(), "", true),
        ("idefics2", below("model.connector.", &idefics2()), IDEFICS2_CONFIG.into(), "perceiver_config", true),
        ("mllama", mllama, MLLAMA_CONFIG.into(), "text_config", true),
        ("blip-2", blip2(), qformer_config("blip-2"), "qformer_config", false),
        ("instructblip", instructblip(), qformer_config("instructblip"), "qformer_config", false),
    ]
}

/// A field in front of a section's others; in front of all of them where the section is "".
fn with_field(config: &str, section: &str, field: &str) -> String {
    let at = match section {
        "" => 1,
        section => config.find(&format!("\"{section}\": {{")).unwrap() + section.len() + 5,
    };
    format!("{}{field}, {}", &config[..at], &config[at..])
}

fn activation(bridges: &Bridges<'_>) -> Activation {
    let qformer = bridges.qformer.as_ref().map(|(c, _)| c.activation);
    let block = bridges.gated_blocks.first().map(|b| b.config.activation);
    qformer.or(block).or(bridges.resampler.as_ref().map(|(c, _)| c.activation)).unwrap()
}

#[test]
fn activations_are_obeyed_or_refused_by_name() {
    for (family, tensors, config, section, gated) in families() {
        let of = |name: &str| {
            let config = with_field(&config, section, &format!("\"hidden_act\": {name}"));
            opened("act", &tensors, Some(&config), None, &Overrides::default(), |_, bridges| activation(bridges))
        };
        let computed: &[(&str, Activation)] = if gated {
            &[("silu", Activation::SwiGlu), ("swish", Activation::SwiGlu)]
        } else {
            &[
                ("gelu", Activation::Gelu),
                ("gelu_python", Activation::Gelu),
                ("relu", Activation::Relu),
                ("relu2", Activation::SquaredRelu),
            ]
        };
        for &(name, expected) in computed {
            assert_eq!(of(&format!("\"{name}\"")), Ok(expected), "{family}");
        }
        let field = if section.is_empty() { "hidden_act".to_string() } else { format!("{section}.hidden_act") };
        let known: Vec<_> = computed.iter().map(|(name, _)| *name).collect();
        for name in ["gelu_new", "gelu_pytorch_tanh", "quick_gelu", if gated { "relu" } else { "silu" }] {
            let wanted = format!(
                "config.json: {field}: expected an activation that is computed ({}), found {name}",
                known.join(", ")
            );
            assert_eq!(of(&format!("\"{name}\"")), Err(wanted), "{family}");
        }
        let wanted =
            format!("config.json: {field}: expected an activation that is computed ({}), found NaN", known.join(", "));
        assert_eq!(of("NaN"), Err(wanted));
        assert!(of("null").unwrap_err().ends_with(", found null"), "{family}");
    }
}

#[test]
fn what_stands_in_fields_that_nobody_reads_does_no_harm() {
    for (family, tensors, config, section, _) in families() {
        for value in ["NaN", "Infinity", "-Infinity", "null", r#"["NaN", {"a": -Infinity}]"#, r#""a \" NaN \\""#] {
            let config = with_field(&config, section, &format!("\"time_step_limit\": {value}"));
            opened("unused", &tensors, Some(&config), None, &Overrides::default(), |_, _| ())
                .unwrap_or_else(|e| panic!("{family}, {value}: {e}"));
        }
    }
    let config =
        |value: &str| with_field(&qformer_config("blip-2"), "qformer_config", &format!("\"layer_norm_eps\": {value}"));
    let eps = |value: &str| refused("eps", &blip2(), Some(&config(value)));
    for (value, found) in
        [("NaN", "NaN"), ("Infinity", "Infinity"), ("-1e-5", "-1e-5"), ("1e300", "1e300"), ("\"1e-5\"", "\"1e-5\"")]
    {
        let wanted =
            format!("config.json: qformer_config.layer_norm_eps: expected a number of at least 0, found {found}");
        assert_eq!(eps(value), wanted);
    }
    let heads = |value: &str| {
        refused(
            "heads",
            &blip2(),
            Some(
                &qformer_config("blip-2")
                    .replace("\"num_attention_heads\": 2", &format!("\"num_attention_heads\": {value}")),
            ),
        )
    };
    for value in ["\"4\"", "4.0", "1099511627776"] {
        let wanted = format!(
            "config.json: qformer_config.num_attention_heads: expected a whole number from 1 to 4294967295, found {value}"
        );
        assert_eq!(heads(value), wanted);
    }
    let wanted = "qformer.encoder.layer.0.attention.output.dense.weight: its width 16 is no multiple of 12 heads \
                  (qformer_config.num_attention_heads of config.json)";
    assert!(heads("12").contains(wanted), "{}", heads("12"));
    let error = refused("section", &blip2(), Some(r#"{"model_type": "blip-2", "qformer_config": 3}"#));
    assert!(
        error.starts_with(
            "config.json: qformer_config.hidden_size: expected an object with hidden_size, found 3 at line"
        ),
        "{error}"
    );
}

#[test]
fn the_configuration_of_another_model() {
    let granite = qformer_config("granite_speech");
    let wanted = "config.json: model_type granite_speech is not supported; to read its tensors as those of another family, name it: \
        open-flamingo, xgen-mm, idefics, idefics2, mllama, blip-2, instructblip, lavis";
    assert_eq!(refused("unknown", &blip2(), Some(&granite)), wanted);
    // The fields count also where the type is unknown: 2 heads of 8 instead of 1 of 16.
    let heads = |config: Option<&str>, family| {
        opened("named", &blip2(), config, Some(family), &Overrides::default(), |_, bridges| {
            let origin = bridges.origins.iter().find(|o| o.value == "heads").unwrap();
            (bridges.qformer.as_ref().unwrap().0.heads, origin.from.to_string())
        })
    };
    let field = "qformer_config.num_attention_heads of config.json".to_string();
    assert_eq!(heads(Some(&granite), Family::Blip2), Ok((2, field)));
    let notes =
        opened("named", &blip2(), Some(&granite), Some(Family::Blip2), &Overrides::default(), |_, b| b.notes.clone());
    let note = "config.json is of model_type granite_speech: of it, the fields count that blip-2 has too";
    assert_eq!(notes, Ok(vec![note.to_string()]));
    let assumed = "assumed: heads of width 64".to_string();
    assert_eq!(heads(None, Family::Blip2), Ok((1, assumed)));
    // Where the names tell the family, its fields count as well.
    let nameless = granite.replace(r#""model_type": "granite_speech", "#, "");
    let heads = opened("nameless", &blip2(), Some(&nameless), None, &Overrides::default(), |checkpoint, b| {
        (checkpoint.family(), b.qformer.as_ref().unwrap().0.heads)
    });
    assert_eq!(heads, Ok((Family::Blip2, 2)));
    // InstructBLIP over video has the same bridge.
    let video = qformer_config("instructblipvideo");
    let found = opened("video", &instructblip(), Some(&video), None, &Overrides::default(), |checkpoint, bridges| {
        (checkpoint.family(), bridges.qformer.as_ref().unwrap().0.heads)
    });
    assert_eq!(found, Ok((Family::InstructBlip, 2)));
    // Granite Speech's projector, of which no configuration is there: a Q-Former alone is nobody's.
    let projector = all([below("projector.qformer.", &qformer_encoder()), dense("projector.linear", 32, 16)]);
    let error = refused("granite", &projector, None);
    assert!(error.starts_with(".: no family's tensors found; name one of open-flamingo"), "{error}");
    let relative =
        with_field(&qformer_config("blip-2"), "qformer_config", r#""position_embedding_type": "relative_key""#);
    let wanted = "config.json: qformer_config.position_embedding_type: expected absolute, which is all that is computed, found relative_key";
    assert_eq!(refused("relative", &blip2(), Some(&relative)), wanted);
    let next = r#"{"model_type": "otter", "only_attend_previous": false}"#;
    let wanted = "config.json: only_attend_previous: expected true, as nothing else is computed, found false";
    assert_eq!(refused("otter", &below("perceiver.", &open_flamingo_resampler()), Some(next)), wanted);
}

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
            "gated block 0 at lang_encoder.gated_cross_attn_layers.0., not below the prefix {of}., which is another part's"
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
    // Without one, K/V heads are as wide as the others, of which the option says how many there are.
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
    tensors.extend(below("video_Qformer.bert.", &qformer_encoder()));
    tensors.extend(dense("ln_vision", 12, 12));
    tensors.extend(dense("audio_llama_proj", 12, 12));
    let overrides = Overrides { heads: Some(2), ..Overrides::default() };
    let (projection, notes, origins) = opened("llama_proj", &tensors, None, None, &overrides, |_, b| {
        (b.language_projection.as_ref().map(|w| w.weight[0].shape().to_vec()), b.notes.clone(), b.origins.clone())
    })
    .unwrap();
    assert_eq!(projection, Some(vec![24, 16]));
    let count = qformer_encoder().len();
    assert_eq!(
        notes,
        [format!(
            "not read, though beside the Q-Former: audio_llama_proj (2 tensors), video_Qformer ({count} tensors)"
        )]
    );
    let of =
        |value: &str| origins.iter().find(|o| o.value == value).map(|o| (o.shown.as_str(), o.from.clone())).unwrap();
    assert_eq!(of("heads"), ("2", Provenance::Option("--heads")));
    assert_eq!(of("queries"), ("4", Provenance::Shape("query_tokens".into())));
    assert_eq!(of("activation"), ("gelu", Provenance::Assumed("what its public library takes".into())));
}

#[test]
fn where_each_value_came_from() {
    let tensors = idefics_checkpoint();
    let lines = opened("origins", &tensors, Some(IDEFICS_CONFIG), None, &Overrides::default(), |_, b| {
        b.origins.iter().map(|o| format!("{} {} {}: {}", o.part, o.value, o.shown, o.from)).collect::<Vec<_>>()
    })
    .unwrap();
    for line in [
        "resampler heads 2: perceiver_config.resampler_n_heads of config.json",
        "resampler latents 3: shape of model.perceiver_resampler.latents",
        "gated blocks heads 2: num_attention_heads of config.json",
        "gated blocks activation swiglu: default of idefics, as config.json has no such field",
    ] {
        assert!(lines.iter().any(|l| l == line), "{line} in {lines:#?}");
    }
}

/// Outputs of the public classes of transformers 5.23, whose configurations say what no tensor does: ReLU, and 4 heads of 8.
#[test]
fn numbers_of_the_public_classes() {
    let folder = Folder::new("public");
    for name in ["blip2_relu", "instructblip_video"] {
        let of = |file: &str| format!("{}/tests/checkpoint/public/{name}/{file}", env!("CARGO_MANIFEST_DIR"));
        let output = folder.join(&format!("{name}.safetensors"));
        let arguments =
            ["--checkpoint", &of(""), "--inputs", &of("in.safetensors"), "--output", output.to_str().unwrap()];
        let done = std::process::Command::new(env!("CARGO_BIN_EXE_xattn")).arg("run").args(arguments).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let read = |path: &std::path::Path| Files::open_one(path).unwrap().tensor("queries").unwrap().to_f64().unwrap();
        let (found, expected) = (read(&output), read(of("expected.safetensors").as_ref()));
        let largest = expected.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let error = found.iter().zip(&expected).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
        // Both sides compute in f32, whose rounding is 6e-8: a wrong activation is off by 0.2, wrong heads by 0.4.
        assert!(found.len() == expected.len() && error < 2e-6 * largest, "{name}: {error:e} of {largest}");
    }
}

/// What a configuration says of a part must be so: an interval, a part that is not used, heads that an option contradicts.
#[test]
fn configurations_that_disagree_with_the_tensors_or_options() {
    let config = qformer_config("blip-2");
    let every = with_field(&config, "qformer_config", r#""cross_attention_frequency": 1"#);
    let error = refused("every", &blip2(), Some(&every));
    let wanted = ". (blip-2): qformer.encoder.layer.1.crossattention.attention.key.weight: missing, according to \
        cross_attention_frequency 1 of config.json";
    assert_eq!(error, wanted);
    let [(_, tensors, config, ..), (_, connector, connector_config, ..), ..] = families();
    let without = config.replace(r#""use_resampler": true"#, r#""use_resampler": false"#);
    let wanted = ". (idefics): model.perceiver_resampler.latents: surplus, according to use_resampler of config.json";
    assert_eq!(refused("unused", &tensors, Some(&without)), wanted);
    let overrides = Overrides { heads: Some(1), ..Overrides::default() };
    let found = opened("heads", &tensors, Some(&config), None, &overrides, |_, _| ());
    let wanted = ". (idefics): --heads: perceiver_config.resampler_n_heads of config.json says 2, the option 1;";
    assert!(found.as_ref().is_err_and(|e| e.starts_with(wanted)), "{found:?}");
    // transformers takes the vision encoder's width, whatever the Q-Former's own field says.
    let stale = qformer_config("blip-2").replace(r#""encoder_hidden_size": 12"#, r#""encoder_hidden_size": 99"#);
    let stale = with_field(&stale, "", r#""vision_config": {"hidden_size": 12}"#);
    let found = opened("stale", &blip2(), Some(&stale), None, &Overrides::default(), |_, b| {
        b.qformer.as_ref().map(|(c, _)| c.encoder_width)
    });
    assert_eq!(found, Ok(Some(12)));
    // A text of another class has other defaults.
    let gemma = with_field(&connector_config, "text_config", r#""model_type": "gemma""#);
    let wanted =
        ". (idefics2): text_config.hidden_act of config.json: not there, and the default of gemma is not known";
    assert_eq!(refused("gemma", &connector, Some(&gemma)), wanted);
    let said = with_field(&gemma, "text_config", r#""hidden_act": "silu""#);
    assert_eq!(opened("said", &connector, Some(&said), None, &Overrides::default(), |_, _| ()), Ok(()));
}

#[test]
fn parts_of_different_copies_are_not_mixed() {
    let of = |tensors: &Tensors, prefix: Option<&str>| {
        let overrides = Overrides { prefix: prefix.map(String::from), ..Overrides::default() };
        opened("mixed", tensors, None, None, &overrides, |_, b| b.language_projection.is_some())
    };
    // The copy at the top has no projection: the other one's is not its own.
    let mut top = blip2();
    top.retain(|name, _| !name.starts_with("language_projection"));
    let other: Tensors =
        blip2().iter().map(|(name, t)| (format!("ema.{name}"), tensor(&format!("ema {name}"), t.shape()))).collect();
    let both = all([top, other]);
    assert_eq!((of(&both, Some("")), of(&both, Some("ema."))), (Ok(false), Ok(true)));
    let model = all([
        below("teacher.perceiver.", &open_flamingo_resampler()),
        below("student.lang_encoder.model.layers.0.gated_cross_attn_layer.", &open_flamingo_block()),
    ]);
    let wanted = ". (open-flamingo): resampler at teacher.perceiver. and gated blocks at \
        student.lang_encoder.model.layers.0.gated_cross_attn_layer.: of different copies; --prefix chooses";
    assert_eq!(of(&model, None), Err(wanted.to_string()));
}
