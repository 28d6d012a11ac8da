//! Every layout of public libraries: the file's bridge equals that of the tensors in memory.

use xattn::checkpoint::mllama::EmptyRowBehaviour;
use xattn::checkpoint::{
    Bridges, Checkpoint, Family, Heads, Overrides, blip2, idefics, idefics2, mllama, open_flamingo,
};
use xattn::ops::Activation;
use xattn::{DType, HostTensor};

use crate::small::*;

/// Opens a file, a folder with the file and config, and the same in shards; each must be of the
/// family and hold what `check` expects.
fn in_every_form(name: &str, tensors: &Tensors, config: Option<&str>, family: Family, check: impl Fn(&Bridges<'_>)) {
    let folder = Folder::new(name);
    let (single, sharded) = (folder.join("single"), folder.join("sharded"));
    for path in [&single, &sharded] {
        std::fs::create_dir(path).unwrap();
        if let Some(config) = config {
            std::fs::write(path.join("config.json"), config).unwrap();
        }
    }
    write(&single.join("model.safetensors"), tensors);
    let shards = write_sharded(&sharded, tensors);
    let forms = [
        single.clone(),
        single.join("model.safetensors"),
        sharded.clone(),
        sharded.join("model.safetensors.index.json"),
    ];
    for path in forms {
        let checkpoint = Checkpoint::open(&path, None).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(checkpoint.family(), family, "{}", path.display());
        assert_eq!(checkpoint.files().shards(), if path.starts_with(&single) { 1 } else { shards.len() });
        check(&checkpoint.bridges(&Overrides::default()).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    }
}

/// Tensors in files and in memory are equal when their bytes are.
#[track_caller]
fn same<F: PartialEq<E> + std::fmt::Debug, E: std::fmt::Debug>(found: &F, expected: &E) {
    assert_eq!(found, expected);
}

/// Parts of other modules, which nobody may read.
fn towers() -> Tensors {
    all([dense("vision_encoder.visual.proj", 3, 2), dense("lang_encoder.lm_head", 5, 4)])
}

#[test]
fn open_flamingo_under_every_alias() {
    let (resampler, block) = (open_flamingo_resampler(), open_flamingo_block());
    let expected = open_flamingo::resampler(&resampler, "", 8).unwrap();
    let expected_block = open_flamingo::gated_block(&block, "", 8, true).unwrap();
    let attributes = ["transformer.blocks", "gpt_neox.layers", "model.layers", "model.decoder.layers"];
    for (i, (wrapper, attribute)) in ["", "module."].iter().flat_map(|w| attributes.map(|a| (w, a))).enumerate() {
        let at = |layer: usize| format!("{wrapper}lang_encoder.{attribute}.{layer}.gated_cross_attn_layer.");
        let tensors = all([
            below(&format!("{wrapper}perceiver."), &resampler),
            below(&at(1), &block),
            below(&at(3), &block),
            towers(),
        ]);
        in_every_form(&format!("of-{i}"), &tensors, None, Family::OpenFlamingo, |bridges| {
            same(bridges.resampler.as_ref().unwrap(), &expected);
            let found: Vec<usize> = bridges.gated_blocks.iter().map(|b| b.index).collect();
            assert_eq!(found, [1, 3]);
            for b in &bridges.gated_blocks {
                same(&(&b.config, &b.weights), &(&expected_block.0, &expected_block.1));
            }
            assert_eq!(bridges.names.len(), resampler.len() + 2 * block.len(), "only the bridge's tensors");
        });
    }
}

#[test]
fn the_second_alias_of_a_block_must_agree() {
    let (resampler, block) = (open_flamingo_resampler(), open_flamingo_block());
    let first = below("lang_encoder.model.layers.0.gated_cross_attn_layer.", &block);
    let mut tensors =
        all([below("perceiver.", &resampler), first, below("lang_encoder.gated_cross_attn_layers.0.", &block)]);
    in_every_form("alias", &tensors, None, Family::OpenFlamingo, |bridges| assert_eq!(bridges.gated_blocks.len(), 1));
    let name = "lang_encoder.gated_cross_attn_layers.0.ff_gate";
    tensors.insert(name.into(), tensor("another", &[1]));
    let folder = Folder::new("alias-differs");
    write(&folder.join("a.safetensors"), &tensors);
    let checkpoint = Checkpoint::open(&folder.join("a.safetensors"), None).unwrap();
    let error = checkpoint.bridges(&Overrides::default()).unwrap_err().to_string();
    let wanted = "gated block 0: different weights at lang_encoder.gated_cross_attn_layers.0. and \
        lang_encoder.model.layers.0.gated_cross_attn_layer. (in ff_gate); --prefix chooses";
    assert!(error.contains(wanted), "{error}");
}

#[test]
fn flamingo_pytorch_otter_and_mini_names() {
    let (resampler, block) = (open_flamingo_resampler(), open_flamingo_block());
    let expected = open_flamingo::resampler(&resampler, "", 8).unwrap();
    let expected_block = open_flamingo::gated_block(&block, "", 8, true).unwrap();
    let check = |bridges: &Bridges<'_>| {
        same(bridges.resampler.as_ref().unwrap(), &expected);
        let b = &bridges.gated_blocks[0];
        same(&(b.index, &b.config, &b.weights), &(3, &expected_block.0, &expected_block.1));
    };
    let palm = all([below("perceiver_resampler.", &resampler), below("layers.3.1.", &block)]);
    in_every_form("palm", &palm, None, Family::OpenFlamingo, check);

    let otter_block = renamed(&block, &OTTER_BLOCK);
    let otter = all([
        below("perceiver.", &otter_resampler()),
        below("lang_encoder.model.layers.3.gated_cross_attn_layer.", &otter_block),
    ]);
    in_every_form("otter", &otter, None, Family::OpenFlamingo, check);

    let mini = below("flamingo.resampler.", &mini_resampler());
    let mini_block = renamed(&block, &MINI_BLOCK);
    let mini = all([mini, below("flamingo.lm.transformer.h.3.xattn_block.", &mini_block)]);
    in_every_form("mini", &mini, None, Family::OpenFlamingo, |bridges| {
        let (config, weights) = bridges.resampler.as_ref().unwrap();
        assert_eq!(config, &expected.0);
        assert_eq!(weights.layers[1].kv.weight.len(), 2);
        assert_eq!(weights.frame_embeddings.as_ref().unwrap().shape(), [2, 1, 16]);
        let b = &bridges.gated_blocks[0];
        same(&(b.index, &b.weights), &(3, &expected_block.1));
    });
}

#[test]
fn xgen_mm_has_sixteen_heads_and_a_projection() {
    let resampler = all([open_flamingo_resampler(), dense("projection", 20, 16)]);
    let tensors = below("vision_tokenizer.", &resampler);
    in_every_form("xgen", &tensors, None, Family::XgenMm, |bridges| {
        let (config, _) = bridges.resampler.as_ref().unwrap();
        assert_eq!((config.heads, config.head_dim, config.projection), (16, 4, Some(20)));
    });
    // Its configuration does not tell the heads either, whatever flamingo-mini's fields there say.
    let folder = Folder::new("xgen-config");
    write(&folder.join("model.safetensors"), &tensors);
    for config in [r#"{"model_type": "xgenmm"}"#, r#"{"model_type": "xgenmm", "resampler_heads": 4}"#] {
        std::fs::write(folder.join("config.json"), config).unwrap();
        let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
        assert_eq!(checkpoint.family(), Family::XgenMm);
        let bridges = checkpoint.bridges(&Overrides::default()).unwrap();
        assert_eq!(bridges.resampler.as_ref().unwrap().0.heads, 16, "{config}");
        let heads = bridges.origins.iter().find(|o| o.part == "resampler" && o.value == "heads").unwrap();
        assert_eq!(heads.from.to_string(), "assumed: what xGen-MM takes for every model");
    }
}

#[test]
fn idefics_beside_its_towers() {
    let (resampler, block) = idefics();
    let expected = idefics::resampler(&resampler, "", 2).unwrap();
    let expected_block = idefics::gated_block(&block, "", 2, 1e-6).unwrap();
    let tensors = all([
        below("model.perceiver_resampler.", &resampler),
        below("model.gated_cross_attn_layers.0.", &block),
        below("model.gated_cross_attn_layers.1.", &block),
        dense("model.vision_model.post_layernorm", 3, 2),
        dense("model.layers.0.mlp.up_proj", 3, 2),
    ]);
    in_every_form("idefics", &tensors, Some(IDEFICS_CONFIG), Family::Idefics, |bridges| {
        same(bridges.resampler.as_ref().unwrap(), &expected);
        assert_eq!(bridges.gated_blocks.len(), 2);
        same(&bridges.gated_blocks[1].weights, &expected_block.1);
        assert_eq!(bridges.gated_blocks[1].config, expected_block.0);
    });
}

#[test]
fn idefics2_with_the_texts_eps_where_widths_differ() {
    let tensors = below("model.connector.", &idefics2());
    let heads = Heads { heads: 2, kv_heads: 1 };
    let expected = idefics2::connector(&idefics2(), "", heads, 1e-5).unwrap();
    in_every_form("idefics2", &tensors, Some(IDEFICS2_CONFIG), Family::Idefics2, |bridges| {
        same(bridges.resampler.as_ref().unwrap(), &expected);
    });
    // As transformers does for old files of the hub.
    let old = IDEFICS2_CONFIG.replace(r#""hidden_size": 16, "resampler_n"#, r#""resampler_n"#).replace("1e-5", "3e-3");
    in_every_form("idefics2-old", &tensors, Some(&old), Family::Idefics2, |bridges| {
        assert_eq!(bridges.resampler.as_ref().unwrap().0.norm.eps, 1e-5);
    });
}

#[test]
fn mllama_of_transformers_4_and_5_and_meta() {
    let layer = mllama_layer();
    let heads = Heads { heads: 4, kv_heads: 2 };
    let expected = mllama::gated_block(&layer, "", heads, 1e-5, EmptyRowBehaviour::Meta).unwrap();
    let projector = dense("multi_modal_projector", 32, 20);
    for (i, (model, base)) in [
        ("", "language_model.model.layers."),
        ("model.", "model.language_model.layers."),
        ("model.", "model.language_model.model.layers."),
    ]
    .into_iter()
    .enumerate()
    {
        let tensors = all([
            below(model, &projector),
            below(&format!("{base}1."), &layer),
            below(&format!("{base}3."), &layer),
            dense(&format!("{base}0.self_attn.q_proj"), 32, 32),
        ]);
        in_every_form(&format!("mllama-{i}"), &tensors, Some(MLLAMA_CONFIG), Family::Mllama, |bridges| {
            let found: Vec<usize> = bridges.gated_blocks.iter().map(|b| b.index).collect();
            assert_eq!(found, [1, 3]);
            same(&bridges.gated_blocks[0].weights, &expected.1);
            assert_eq!(bridges.gated_blocks[0].config, expected.0);
            assert_eq!(bridges.projector.as_ref().unwrap().weight[0].shape(), [32, 20]);
        });
    }
    let renamed = mllama_meta_layer();
    let tensors = all([
        below("text_model.cross_attention_layers.0.", &renamed),
        below("text_model.cross_attention_layers.1.", &renamed),
        dense("vision_model.vision_projection", 32, 20),
    ]);
    in_every_form("mllama-meta", &tensors, Some(MLLAMA_CONFIG), Family::Mllama, |bridges| {
        assert_eq!(bridges.gated_blocks.len(), 2);
        same(&bridges.gated_blocks[1].weights, &expected.1);
    });
}

#[test]
fn qformers_of_transformers_and_lavis() {
    let blip2 = crate::small::blip2();
    let expected = blip2::read_qformer(&blip2, "", blip2::Layout::Blip2, 2, 4, 1e-12).unwrap();
    in_every_form("blip2", &blip2, Some(&qformer_config("blip-2")), Family::Blip2, |bridges| {
        same(bridges.qformer.as_ref().unwrap(), &expected);
        assert!(bridges.image_projection.is_some() && bridges.text_projection.is_some() && bridges.itm.is_some());
        assert_eq!(bridges.language_projection.as_ref().unwrap().weight[0].shape(), [24, 16]);
    });

    in_every_form(
        "instruct",
        &instructblip(),
        Some(&qformer_config("instructblip")),
        Family::InstructBlip,
        |bridges| {
            let (found, weights) = bridges.qformer.as_ref().unwrap();
            assert_eq!(found, &expected.0);
            same(&weights.layers, &expected.1.layers);
            same(weights.query_tokens.as_ref().unwrap(), &tensor("queries", &[4, 16]));
            same(&weights.text_embedding, &expected.1.text_embedding);
        },
    );

    let lavis = lavis();
    let folder = Folder::new("lavis");
    write(&folder.join("blip2.safetensors"), &lavis);
    let checkpoint = Checkpoint::open(&folder.join("blip2.safetensors"), None).unwrap();
    assert_eq!(checkpoint.family(), Family::Lavis);
    let bridges = checkpoint.bridges(&Overrides { heads: Some(2), ..Overrides::default() }).unwrap();
    let (_, weights) = bridges.qformer.as_ref().unwrap();
    same(weights, &expected.1);
    assert_eq!(bridges.language_projection.as_ref().unwrap().weight[0].shape(), [24, 16]);
}

#[test]
fn every_float_type_and_a_named_family() {
    let folder = Folder::new("dtypes");
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let tensors: Tensors = open_flamingo_resampler()
            .into_iter()
            .map(|(name, t)| (name, t.to_dtype(dtype).unwrap().into_owned().unwrap()))
            .collect();
        let path = folder.join(&format!("{dtype}.safetensors"));
        write(&path, &tensors);
        let checkpoint = Checkpoint::open(&path, Some(Family::OpenFlamingo)).unwrap();
        let bridges = checkpoint.bridges(&Overrides { heads: Some(4), ..Overrides::default() }).unwrap();
        let (config, weights) = bridges.resampler.as_ref().unwrap();
        assert_eq!((config.heads, config.head_dim), (4, 16));
        assert_eq!(weights.latents.dtype(), dtype);
        assert_eq!(weights.latents.to_f64().unwrap(), tensor("latents", &[3, 16]).to_f64().unwrap());
    }
}

#[test]
fn the_list_of_blocks_is_an_alias_too() {
    let (resampler, block) = (open_flamingo_resampler(), open_flamingo_block());
    let expected = open_flamingo::gated_block(&block, "", 8, true).unwrap();
    // OpenFlamingo deletes these names; others keep them, beside the frozen part.
    let tensors = all([
        below("perceiver.", &resampler),
        below("lang_encoder.gated_cross_attn_layers.1.", &block),
        below("lang_encoder.gated_cross_attn_layers.3.", &block),
        dense("lang_encoder.old_decoder_blocks.1.ff", 3, 2),
    ]);
    in_every_form("list", &tensors, None, Family::OpenFlamingo, |bridges| {
        let found: Vec<usize> = bridges.gated_blocks.iter().map(|b| b.index).collect();
        assert_eq!(found, [1, 3]);
        same(&bridges.gated_blocks[1].weights, &expected.1);
    });
}

#[test]
fn names_that_activation_checkpointing_lengthened() {
    let (resampler, block) = (open_flamingo_resampler(), open_flamingo_block());
    let inside = renamed(&block, &[("attn.to_q", "attn._checkpoint_wrapped_module.to_q")]);
    let tensors = all([
        below("module.perceiver._checkpoint_wrapped_module.", &resampler),
        below("module.lang_encoder.model.layers.1.gated_cross_attn_layer._checkpoint_wrapped_module.", &inside),
        towers(),
    ]);
    in_every_form("wrapped", &tensors, None, Family::OpenFlamingo, |bridges| {
        same(bridges.resampler.as_ref().unwrap(), &open_flamingo::resampler(&resampler, "", 8).unwrap());
        same(&bridges.gated_blocks[0].weights, &open_flamingo::gated_block(&block, "", 8, true).unwrap().1);
        assert!(bridges.names.contains_key("perceiver.latents"), "{:?}", bridges.names);
    });
}

#[test]
fn embeddings_of_frames_and_media() {
    for (name, shape) in
        [("frame_embs", vec![128, 16]), ("media_time_embs", vec![2, 1, 16]), ("media_pos_emb", vec![4, 1, 16])]
    {
        let mut resampler = open_flamingo_resampler();
        resampler.insert(name.into(), tensor(name, &shape));
        let tensors = below("perceiver.", &resampler);
        in_every_form(name, &tensors, None, Family::OpenFlamingo, |bridges| {
            let weights = &bridges.resampler.as_ref().unwrap().1;
            let (here, other) = match name {
                "frame_embs" => (&weights.frame_embeddings, &weights.media_embeddings),
                _ => (&weights.media_embeddings, &weights.frame_embeddings),
            };
            same(here, &Some(tensor(name, &shape)));
            assert!(other.is_none());
        });
    }
}

#[test]
fn a_module_saved_alone() {
    let resampler = open_flamingo_resampler();
    in_every_form("alone", &resampler, None, Family::OpenFlamingo, |bridges| {
        same(bridges.resampler.as_ref().unwrap(), &open_flamingo::resampler(&resampler, "", 8).unwrap());
        assert!(bridges.gated_blocks.is_empty());
    });
}

#[test]
fn flamingo_minis_configuration_tells_heads_and_activations() {
    let tensors = all([
        below("flamingo.resampler.", &mini_resampler()),
        below("flamingo.lm.transformer.h.0.xattn_block.", &renamed(&open_flamingo_block(), &MINI_BLOCK)),
    ]);
    let config = r#"{"architectures": ["FlamingoModel"], "resampler_heads": 4, "resampler_act": "sqrelu", "xattn_heads": 16, "xattn_act": "relu"}"#;
    in_every_form("mini-config", &tensors, None, Family::OpenFlamingo, |bridges| {
        let (config, _) = bridges.resampler.as_ref().unwrap();
        assert_eq!((config.heads, config.activation), (8, Activation::Gelu));
    });
    let folder = Folder::new("mini-config-there");
    write(&folder.join("model.safetensors"), &tensors);
    std::fs::write(folder.join("config.json"), config).unwrap();
    let checkpoint = Checkpoint::open(&folder.0, None).unwrap();
    assert_eq!(checkpoint.family(), Family::OpenFlamingo);
    let bridges = checkpoint.bridges(&Overrides::default()).unwrap();
    let (resampler, block) = (&bridges.resampler.as_ref().unwrap().0, &bridges.gated_blocks[0].config);
    assert_eq!((resampler.heads, resampler.head_dim, resampler.activation), (4, 16, Activation::SquaredRelu));
    assert_eq!((block.heads, block.head_dim, block.activation), (16, 4, Activation::Relu));
    std::fs::write(folder.join("config.json"), config.replace("sqrelu", "swish")).unwrap();
    let error = Checkpoint::open(&folder.0, None).err().unwrap().to_string();
    let wanted =
        "config.json: resampler_act: expected an activation that is computed (gelu, sqrelu, relu), found swish";
    assert!(error.contains(wanted), "{error}");
}

#[test]
fn lavis_heads_under_all_of_their_names() {
    for (projection, shape) in [("opt_proj", [24, 16]), ("t5_proj", [20, 16]), ("llm_proj", [28, 16])] {
        let mut tensors = lavis();
        tensors.retain(|name, _| !name.starts_with("opt_proj"));
        let first_stage = all([
            dense("vision_proj", 6, 16),
            dense("text_proj", 6, 16),
            dense("itm_head", 2, 16),
            dense("Qformer.cls.predictions.transform.dense", 16, 16),
            [("temp".to_string(), tensor("temp", &[1]))].into(),
            dense("ln_vision", 12, 12),
        ]);
        let norm: Tensors = [("weight", "n.w"), ("bias", "n.b")]
            .map(|(n, v)| (format!("Qformer.cls.predictions.transform.LayerNorm.{n}"), tensor(v, &[16])))
            .into();
        let decoder: Tensors = [
            ("Qformer.cls.predictions.decoder.weight", vec![9, 16]),
            ("Qformer.cls.predictions.decoder.bias", vec![9]),
            ("Qformer.cls.predictions.bias", vec![9]),
        ]
        .map(|(n, shape)| (n.to_string(), tensor("decoder", &shape)))
        .into();
        let buffer = [(
            "Qformer.bert.embeddings.position_ids".to_string(),
            HostTensor::from_slice(&[0i32; 5], &[1, 5]).unwrap(),
        )];
        let tensors = all([tensors, first_stage, norm, decoder, buffer.into(), dense(projection, shape[0], shape[1])]);
        let folder = Folder::new(projection);
        // As the converter writes what LAVIS nests in DDP's module.
        for wrapper in ["", "module."] {
            write(&folder.join("a.safetensors"), &below(wrapper, &tensors));
            let checkpoint = Checkpoint::open(&folder.join("a.safetensors"), None).unwrap();
            assert_eq!(checkpoint.family(), Family::Lavis);
            let bridges = checkpoint.bridges(&Overrides { heads: Some(2), ..Overrides::default() }).unwrap();
            assert_eq!(bridges.language_projection.as_ref().unwrap().weight[0].shape(), shape);
            assert!(bridges.image_projection.is_some() && bridges.text_projection.is_some() && bridges.itm.is_some());
            assert_eq!(bridges.lm_head.as_ref().unwrap().decoder.weight[0].shape(), [9, 16]);
            assert!(!bridges.names.contains_key("temp") && !bridges.names.keys().any(|n| n.contains("ln_vision")));
        }
    }
}

/// transformers 5 nests some models again; every prefix is found, also a model in a model.
#[test]
fn transformers_families_under_longer_prefixes() {
    let (resampler, block) = idefics();
    for prefix in ["", "model.", "model.model."] {
        let tensors = all([
            below(&format!("{prefix}perceiver_resampler."), &resampler),
            below(&format!("{prefix}gated_cross_attn_layers.0."), &block),
            below(&format!("{prefix}gated_cross_attn_layers.1."), &block),
        ]);
        in_every_form(&format!("idefics-{prefix}"), &tensors, Some(IDEFICS_CONFIG), Family::Idefics, |bridges| {
            assert_eq!((bridges.resampler.is_some(), bridges.gated_blocks.len()), (true, 2));
        });
        let tensors = below(&format!("{prefix}connector."), &idefics2());
        in_every_form(&format!("idefics2-{prefix}"), &tensors, Some(IDEFICS2_CONFIG), Family::Idefics2, |bridges| {
            assert!(bridges.resampler.is_some());
        });
        for (tensors, model) in [(blip2(), "blip-2"), (instructblip(), "instructblip")] {
            let tensors = below(prefix, &tensors);
            let family: Family = model.parse().unwrap();
            in_every_form(&format!("{model}-{prefix}"), &tensors, Some(&qformer_config(model)), family, |bridges| {
                assert!(bridges.qformer.as_ref().unwrap().1.query_tokens.is_some());
                assert!(bridges.language_projection.is_some());
            });
        }
    }
    let xgen = below("vlm.vision_tokenizer.", &all([open_flamingo_resampler(), dense("projection", 20, 16)]));
    in_every_form("xgen-hub", &xgen, Some(r#"{"model_type": "xgenmm"}"#), Family::XgenMm, |bridges| {
        assert_eq!(bridges.resampler.as_ref().unwrap().0.projection, Some(20));
    });
}
