//! Options for reading a checkpoint, and whether they apply to it.

use std::path::{Path, PathBuf};

use clap::Args;
use xattn::Error;
use xattn::bridge::MediaRule;
use xattn::checkpoint::mllama::EmptyRowBehaviour;
use xattn::checkpoint::{AdapterChoice, Bridges, Checkpoint, Family, GatedBlockAt, Overrides};

use super::blocks::{mask_names, with_text};
use super::tensors::Inputs;

/// How to read a checkpoint.
#[derive(Args)]
pub struct CheckpointChoice {
    #[arg(long, value_parser = family, help = format!("Family [default: what config.json or the tensors' names say]: {}", names()))]
    family: Option<Family>,
    /// Query heads of the resampler or Q-Former, where no configuration says how many
    #[arg(long, value_name = "N", value_parser = positive)]
    heads: Option<usize>,
    /// Query heads of the gated blocks, where no configuration says how many
    #[arg(long, value_name = "N", value_parser = positive)]
    block_heads: Option<usize>,
    /// A LoRA adapter to merge: its folder or its file of weights; `none`: not the one beside the
    /// checkpoint [default: that one]
    #[arg(long, value_name = "PATH")]
    adapter: Option<PathBuf>,
    /// Of several copies in one checkpoint (an EMA, a teacher), read the one whose tensors' names
    /// begin with this; empty: the one that no copy's prefix precedes
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Text sees all media before it, not only the last one (OpenFlamingo)
    #[arg(long)]
    attend_preceding: bool,
    /// Llama-3.2-Vision: text before the first image attends to all media, as in transformers
    /// (default: to none, as in Meta's code)
    #[arg(long)]
    transformers_empty_rows: bool,
}

impl CheckpointChoice {
    /// Opens the chosen checkpoint.
    ///
    /// # Errors
    /// As [`Checkpoint::open_with`].
    pub fn open(&self, path: &Path) -> Result<Checkpoint, Error> {
        let adapter = match self.adapter.as_deref() {
            None => AdapterChoice::Beside,
            Some(none) if none.as_os_str() == "none" => AdapterChoice::None,
            Some(path) => AdapterChoice::At(path),
        };
        Checkpoint::open_with(path, self.family, adapter)
    }

    /// The other options, for the library.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            prefix: self.prefix.clone(),
            heads: self.heads,
            block_heads: self.block_heads,
            attend_preceding: self.attend_preceding,
            empty_rows: if self.transformers_empty_rows {
                EmptyRowBehaviour::Transformers
            } else {
                EmptyRowBehaviour::Meta
            },
        }
    }

    /// Refuses options for a part that the checkpoint lacks.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the option.
    pub fn expect_useful(&self, checkpoint: &Checkpoint, bridges: &Bridges<'_>) -> Result<(), Error> {
        let family = checkpoint.family();
        let named = self.adapter.as_ref().is_some_and(|path| path.as_os_str() != "none");
        let adapter = checkpoint.files().adapter();
        let changed = adapter.iter().flat_map(|a| a.merged().chain(a.replaced()));
        let changes = changed.into_iter().any(|name| bridges.names.contains_key(name));
        expect(named, "--adapter", changes, "an adapter that changes tensors of the bridge that is read")?;
        let none = self.adapter.is_some() && !named;
        let left_out = checkpoint.files().leaves_adapter_out();
        expect(none, "--adapter none", left_out, "an adapter beside the checkpoint")?;
        let has_heads = bridges.resampler.is_some() || bridges.qformer.is_some();
        let blocks = &bridges.gated_blocks;
        let llama = family == Family::Mllama && !blocks.is_empty();
        let preceding = blocks.iter().any(|block| block.config.rule == MediaRule::Preceding);
        expect(self.heads.is_some(), "--heads", has_heads, "a checkpoint with a resampler or Q-Former")?;
        expect(self.block_heads.is_some(), "--block-heads", !blocks.is_empty(), "a checkpoint with gated blocks")?;
        expect(self.attend_preceding, "--attend-preceding", preceding, "gated blocks of OpenFlamingo")?;
        expect(self.transformers_empty_rows, "--transformers-empty-rows", llama, "gated blocks of Llama-3.2-Vision")
    }

    /// Refuses options for a part that these inputs do not reach. `skips`: they skip the resampler.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the option.
    pub fn expect_read(&self, bridges: &Bridges<'_>, inputs: &Inputs, skips: bool) -> Result<(), Error> {
        let running: Vec<&GatedBlockAt<'_>> =
            with_text(inputs, &bridges.gated_blocks).into_iter().map(|(block, _)| block).collect();
        let masked = running.iter().any(|block| {
            let names = [true, false].map(|tiles| mask_names(block.config.rule, tiles));
            names.into_iter().flatten().any(|name| inputs.has(name))
        });
        expect(self.heads.is_some(), "--heads", !skips, "features in the inputs, which `media` replaces")?;
        expect(self.block_heads.is_some(), "--block-heads", !running.is_empty(), "text in the inputs")?;
        let what = "text in the inputs, with media_locations or media_index";
        expect(self.attend_preceding, "--attend-preceding", masked, what)?;
        let what = "text in the inputs, with cross_attention_mask";
        expect(self.transformers_empty_rows, "--transformers-empty-rows", masked, what)
    }
}

/// Refuses `--frames` where no frame embeddings are added.
///
/// # Errors
/// [`Error::Argument`].
pub fn expect_frames(frames: Option<usize>, bridges: &Bridges<'_>, skips: bool) -> Result<(), Error> {
    let added = bridges.resampler.as_ref().is_some_and(|(_, weights)| weights.frame_embeddings.is_some());
    expect(frames.is_some(), "--frames", added, "a resampler with frame embeddings")?;
    expect(frames.is_some(), "--frames", !skips, "features in the inputs, which `media` replaces")
}

fn expect(given: bool, option: &'static str, useful: bool, expected: &'static str) -> Result<(), Error> {
    match given && !useful {
        true => Err(Error::argument("xattn", option, expected, "none, so that the option changes nothing")),
        false => Ok(()),
    }
}

/// A number of heads.
fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

/// The names of all families.
fn names() -> String {
    Family::ALL.map(Family::name).join(", ")
}

/// A family by its name. The error names the nearest.
fn family(text: &str) -> Result<Family, String> {
    let plain = |text: &str| text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let given = plain(text);
    let all = Family::ALL.iter().copied();
    if let Some(family) = all.clone().find(|family| family.name() == text) {
        return Ok(family);
    }
    let names = names();
    match all.min_by_key(|family| distance(&given, &plain(family.name()))) {
        Some(nearest) => Err(format!("the nearest is {nearest}; there are {names}")),
        None => Err(format!("there are {names}")),
    }
}

/// Edit distance: an insertion or deletion costs 1, a replacement 2.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let kept = diagonal + if x == y { 0 } else { 2 };
            diagonal = row[j + 1];
            row[j + 1] = kept.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_family_is_named() {
        for (text, nearest) in [
            ("blip2", "blip-2"),
            ("BLIP_2", "blip-2"),
            ("instruct-blip", "instructblip"),
            ("openflamingo", "open-flamingo"),
            ("flamingo", "open-flamingo"),
            ("xgenmm", "xgen-mm"),
            ("idefics-2", "idefics2"),
            ("idefics1", "idefics"),
            ("llama", "mllama"),
            ("Lavis", "lavis"),
        ] {
            let all = "open-flamingo, xgen-mm, idefics, idefics2, mllama, blip-2, instructblip, lavis";
            assert_eq!(family(text), Err(format!("the nearest is {nearest}; there are {all}")), "{text}");
        }
        assert_eq!(Family::ALL.map(|known| family(known.name())), Family::ALL.map(Ok));
    }
}
