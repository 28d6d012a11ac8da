//! Frame and media time embeddings, with the interpolation that the Flamingo paper uses for longer
//! videos.

use crate::tensor::room;
use crate::{Error, Result};

/// What happens when a clip has another number of frames than there are learnt embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Interpolation {
    /// Fewer frames use the first embeddings; more are an error. What every public implementation
    /// does.
    #[default]
    None,
    /// Linear interpolation to exactly the clip's frames (Flamingo, Appendix A.1.1: trained with 8
    /// frames, used with 30).
    Linear {
        /// The first and last frame get the first and last embedding. The paper does not say; the
        /// other reading places frame t of n at `(t + 0.5) · count / n − 0.5`, clamped.
        align_corners: bool,
    },
}

/// Resamples a table `[count, width]` of embeddings to `frames` rows.
///
/// # Errors
/// No embedding, more frames than embeddings with [`Interpolation::None`], or more than memory
/// holds.
pub fn interpolate(table: &[f64], width: usize, frames: usize, how: Interpolation) -> Result<Vec<f64>> {
    let count = table.len().checked_div(width).unwrap_or(0);
    let refuse = |expected: String| Err(Error::argument("time embedding", "frames", expected, frames));
    if count == 0 {
        return refuse("at least one embedding".into());
    }
    let align_corners = match how {
        Interpolation::None if frames <= count => return Ok(table[..frames * width].to_vec()),
        Interpolation::None => return refuse(format!("at most {count} without interpolation")),
        Interpolation::Linear { align_corners } => align_corners,
    };
    let mut rows = room("host", frames.saturating_mul(width), "time embeddings")?;
    for t in 0..frames {
        let last = (count - 1) as f64;
        let position = if align_corners {
            if frames > 1 { t as f64 * last / (frames - 1) as f64 } else { 0.0 }
        } else {
            ((t as f64 + 0.5) * count as f64 / frames as f64 - 0.5).clamp(0.0, last)
        };
        let low = (position.floor() as usize).min(count - 1);
        let high = (low + 1).min(count - 1);
        let share = position - low as f64;
        rows.extend((0..width).map(|d| (1.0 - share) * table[low * width + d] + share * table[high * width + d]));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ramp shows the coordinate that each frame reads: spec 2.1 gives those of frame 2 of 30
    /// over 8 embeddings.
    #[test]
    fn both_conventions_read_the_coordinates_of_the_paper_reading() {
        let ramp: Vec<f64> = (0..8).map(f64::from).collect();
        let corners = interpolate(&ramp, 1, 30, Interpolation::Linear { align_corners: true }).unwrap();
        assert!((corners[2] - 14.0 / 29.0).abs() < 1e-12 && corners[0] == 0.0 && corners[29] == 7.0);
        let centres = interpolate(&ramp, 1, 30, Interpolation::Linear { align_corners: false }).unwrap();
        assert!((centres[2] - (2.5 * 8.0 / 30.0 - 0.5)).abs() < 1e-12 && centres[0] == 0.0 && centres[29] == 7.0);
        assert!((centres[2] - 0.167).abs() < 1e-3 && (corners[2] - 0.483).abs() < 1e-3);
    }

    #[test]
    fn equal_counts_change_nothing_and_one_frame_gets_the_first() {
        let table = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0];
        for how in [
            Interpolation::None,
            Interpolation::Linear { align_corners: true },
            Interpolation::Linear { align_corners: false },
        ] {
            assert_eq!(interpolate(&table, 2, 3, how).unwrap(), table);
        }
        assert_eq!(interpolate(&table, 2, 1, Interpolation::Linear { align_corners: true }).unwrap(), [1.0, 2.0]);
        assert_eq!(interpolate(&table, 2, 2, Interpolation::None).unwrap(), [1.0, 2.0, 3.0, 5.0]);
    }

    #[test]
    fn too_many_frames_are_an_error_without_interpolation() {
        let message = interpolate(&[1.0, 2.0], 1, 3, Interpolation::None).unwrap_err().to_string();
        assert_eq!(message, "time embedding: frames: expected at most 2 without interpolation, got 3");
        assert!(interpolate(&[], 4, 1, Interpolation::None).is_err());
    }

    #[test]
    fn more_frames_than_memory_holds_are_an_error() {
        for (frames, bytes) in [(1 << 50, 8usize << 50), (usize::MAX, usize::MAX)] {
            let found = interpolate(&[1.0, 2.0], 1, frames, Interpolation::Linear { align_corners: true });
            assert_eq!(found, Err(Error::OutOfMemory { backend: "host", purpose: "time embeddings", bytes }));
        }
    }
}
