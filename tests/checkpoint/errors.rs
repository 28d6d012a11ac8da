//! What is wrong with a checkpoint is said by name, all of it at once.

use xattn::checkpoint::{Checkpoint, Family, Files, Overrides};
use xattn::{DType, Error, HostTensor};

use crate::small::*;

fn problems(name: &str, tensors: &Tensors, config: Option<&str>) -> Vec<String> {
    let folder = Folder::new(name);
    write(&folder.join("model.safetensors"), tensors);
    if let Some(config) = config {
        std::fs::write(folder.join("config.json"), config).unwrap();
    }
    match Checkpoint::open(&folder.0, None).unwrap().bridges(&Overrides::default()) {
        Err(Error::Weights { problems, .. }) => problems,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn missing_surplus_and_misshaped_in_one_error() {
    let mut t = idefics_checkpoint();
    t.remove("model.perceiver_resampler.blocks.0.1.ln.bias");
    t.remove("model.gated_cross_attn_layers.1.mlp.up_proj.weight");
    t.insert("model.gated_cross_attn_layers.0.cross_attn.q_proj.weight".into(), tensor("q", &[31, 32]));
    t.insert("model.perceiver_resampler.latents".into(), tensor("l", &[3, 13]));
    t.insert("model.perceiver_resampler.blocks.0.0.q_proj.bias".into(), tensor("b", &[16]));
    let found = problems("three", &t, Some(IDEFICS_CONFIG));
    assert_eq!(
        found,
        [
            "model.perceiver_resampler.latents: expected [3, 12], found [3, 13]",
            "model.perceiver_resampler.blocks.0.1.ln.bias: missing, expected [12]",
            "model.gated_cross_attn_layers.0.cross_attn.q_proj.weight: expected [32, 32], found [31, 32]",
            "model.gated_cross_attn_layers.1.mlp.up_proj.weight: missing, expected [40, 32]",
            "model.perceiver_resampler.blocks.0.0.q_proj.bias: surplus, expected no such tensor, found [16]",
        ]
    );
}

#[test]
fn a_layer_or_block_that_the_configuration_promises() {
    let mut t = idefics_checkpoint();
    t.retain(|name, _| !name.contains("gated_cross_attn_layers.1."));
    let found = problems("block", &t, Some(IDEFICS_CONFIG));
    assert!(
        found
            .iter()
            .any(|p| p == "model.gated_cross_attn_layers.1.cross_attn.o_proj.weight: missing, expected [32, 32]"),
        "{found:#?}"
    );

    let two = IDEFICS_CONFIG.replace(r#""resampler_depth": 1"#, r#""resampler_depth": 2"#);
    let found = problems("layer", &idefics_checkpoint(), Some(&two));
    assert!(
        found.iter().any(|p| p == "model.perceiver_resampler.blocks.1.0.q_proj.weight: missing, expected [16, 12]"),
        "{found:#?}"
    );

    let unnormed = IDEFICS_CONFIG.replace(r#""qk_layer_norms": true"#, r#""qk_layer_norms": false"#);
    let found = problems("norms", &idefics_checkpoint(), Some(&unnormed));
    assert_eq!(
        found[0],
        "model.gated_cross_attn_layers.0.cross_attn.q_layer_norm.weight: surplus, according to qk_layer_norms of config.json"
    );
}

#[test]
fn holes_between_layers_and_blocks() {
    let mut resampler = open_flamingo_resampler();
    resampler.retain(|name, _| !name.starts_with("layers.1."));
    let more: Tensors = below("layers.2.1.", &[("0.weight".to_string(), tensor("x", &[16]))].into());
    let block =
        |i: usize| below(&format!("lang_encoder.model.layers.{i}.gated_cross_attn_layer."), &open_flamingo_block());
    let t = all([below("perceiver.", &resampler), below("perceiver.", &more), block(3), block(7), block(15)]);
    let found = problems("holes", &t, None);
    assert_eq!(found[0], "perceiver.layers.1.: missing, though 2. is there");
    assert_eq!(found[1], "gated blocks 7 and 15: those between them are missing, elsewhere the distance is 4");
    assert_eq!(found[2], "perceiver.layers.2.1.0.weight: surplus, expected no such tensor, found [16]");
    assert_eq!(found.len(), 3, "{found:#?}");
}

#[test]
fn integers_where_reals_should_be() {
    let mut t = idefics_checkpoint();
    let name = "model.gated_cross_attn_layers.1.alpha_dense";
    t.insert("model.perceiver_resampler.latents".into(), HostTensor::from_slice(&[0i32; 36], &[3, 12]).unwrap());
    t.remove(name);
    let found = problems("integers", &t, Some(IDEFICS_CONFIG));
    assert_eq!(found[0], "model.perceiver_resampler.latents: expected reals, found i32");
    assert!(found.iter().any(|p| p.starts_with(&format!("{name}: missing"))), "{found:#?}");
}

#[test]
fn heads_that_do_not_divide() {
    let folder = Folder::new("heads");
    write(&folder.join("a.safetensors"), &below("perceiver.", &open_flamingo_resampler()));
    let checkpoint = Checkpoint::open(&folder.join("a.safetensors"), None).unwrap();
    for heads in [0, 7] {
        let error = checkpoint.bridges(&Overrides { heads: Some(heads), ..Overrides::default() }).unwrap_err();
        let text = format!("perceiver.layers.0.0.to_q.weight: 64 rows do not split into {heads} heads");
        assert!(error.to_string().contains(&text), "{error}");
    }
}

#[test]
fn families_that_cannot_be_told() {
    let folder = Folder::new("family");
    let open = |name: &str, tensors: &Tensors| {
        write(&folder.join(name), tensors);
        Checkpoint::open(&folder.join(name), None).err().map(|e| e.to_string()).unwrap_or_default()
    };
    let none = open("none.safetensors", &dense("lm_head", 2, 2));
    assert!(none.contains("no family's tensors found; name one of open-flamingo, xgen-mm, idefics,"), "{none}");
    let two = all([below("perceiver.", &open_flamingo_resampler()), below("model.connector.", &idefics2())]);
    let two = open("two.safetensors", &two);
    assert!(two.contains("tensors of several families; name one of open-flamingo, idefics2"), "{two}");
    let path = folder.join("two.safetensors");
    assert_eq!(Checkpoint::open(&path, Some(Family::Idefics2)).unwrap().family(), Family::Idefics2);
    let error = "idefics9".parse::<Family>().unwrap_err().to_string();
    assert!(error.contains("expected one of open-flamingo") && error.contains("got idefics9"), "{error}");
}

#[test]
fn tensors_of_files() {
    let folder = Folder::new("tensors");
    let path = folder.join("a.safetensors");
    let header = br#"{"n":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"x":{"dtype":"F32","shape":[3],"data_offsets":[16,28]}}"#;
    let numbers = [1.5f32, -2.0, 3.0].map(f32::to_le_bytes).concat();
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header, &[7; 16], &numbers].concat()).unwrap();
    let files = Files::open(&path).unwrap();
    let x = files.tensor("x").unwrap();
    assert_eq!((x.dtype(), x.shape(), x.elements()), (DType::F32, &[3][..], 3));
    assert_eq!(x.to_vec::<f32>().unwrap(), [1.5, -2.0, 3.0]);
    assert_eq!(x, HostTensor::from_slice(&[1.5f32, -2.0, 3.0], &[3]).unwrap());
    assert_eq!(format!("{x:?}"), format!("HostTensor(f32[3], 12 bytes behind byte 134 of {})", path.display()));
    // Where bytes are to be borrowed, they must be in memory.
    let error = x.view().unwrap_err().to_string();
    let place = format!("12 bytes behind byte 134 of {}", path.display());
    assert_eq!(error, format!("host tensor: view: expected a tensor in memory, got {place}"));
    assert_eq!(x.into_owned().unwrap().to_vec::<f32>().unwrap(), [1.5, -2.0, 3.0]);
    let n = files.info("n").unwrap();
    assert_eq!((n.dtype().as_str(), &*n.shape, n.bytes, n.elements()), ("i64", &[2][..], 16, 2));
    assert_eq!(files.bytes("n").unwrap(), [7; 16]);
    let fault = "tensor n: expected f64, f32, f16, bf16, i32 or u32, found i64";
    assert_eq!(files.tensor("n").unwrap_err(), Error::file(&path, fault));
    assert_eq!(files.tensor("y").unwrap_err(), Error::file(&path, "tensor y: not there"));
    assert_eq!(files.bytes("y").unwrap_err(), Error::file(&path, "tensor y: not there"));
    assert!(files.info("y").is_none());
}
