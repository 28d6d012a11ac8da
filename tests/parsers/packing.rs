//! A bridge that is packed holds the tensors of its file one at a time.

use xattn::bridge::{PerceiverResampler, Precision};
use xattn::checkpoint::Files;
use xattn::checkpoint::open_flamingo;
use xattn::{DType, Device};

use crate::counting;
use crate::harness::{Folder, file};

#[test]
fn one_tensor_at_a_time() {
    let (width, layers) = (256, 6);
    let mut shapes = vec![("latents".to_string(), vec![2, width])];
    for part in ["weight", "bias"] {
        shapes.push((format!("norm.{part}"), vec![width]));
    }
    for i in 0..layers {
        for part in ["weight", "bias"] {
            for norm in ["0.norm_media", "0.norm_latents", "1.0"] {
                shapes.push((format!("layers.{i}.{norm}.{part}"), vec![width]));
            }
        }
        for (name, rows, columns) in [
            ("0.to_q", width, width),
            ("0.to_kv", 2 * width, width),
            ("0.to_out", width, width),
            ("1.1", 4 * width, width),
            ("1.3", width, 4 * width),
        ] {
            shapes.push((format!("layers.{i}.{name}.weight"), vec![rows, columns]));
        }
    }
    let (mut entries, mut bytes, mut largest) = (Vec::new(), 0, 0);
    for (name, shape) in &shapes {
        let size = 4 * shape.iter().product::<usize>();
        entries
            .push(format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{bytes},{}]}}"#, bytes + size));
        (bytes, largest) = (bytes + size, largest.max(size));
    }
    let folder = Folder::new("packing");
    let path = folder.write("a.safetensors", &file(&format!("{{{}}}", entries.join(",")), &vec![0; bytes]));
    let files = Files::open(&path).unwrap();
    let (read, opened) = counting::peak_of(|| open_flamingo::resampler(&&files, "", 4).unwrap());
    assert!(opened < 200_000, "{opened} bytes to find the bridge");
    let (config, weights) = read;
    let precision = Precision::uniform(DType::F32);
    let device = Device::reference();
    let before = counting::live();
    let (bridge, peak) = counting::peak_of(|| PerceiverResampler::new(&device, &config, &weights, precision).unwrap());
    let kept = (counting::live() - before) as usize;
    drop(bridge);
    assert!(
        bytes > 8 * largest && (bytes..bytes + largest).contains(&kept),
        "{kept} kept of {bytes}, at most {largest} more"
    );
    // Beside what stays: the tensor as read, stacked, and in its final form.
    assert!(
        peak < kept + 4 * largest,
        "{peak} at once: {kept} stay, the file has {bytes}, its largest tensor {largest}"
    );
}
