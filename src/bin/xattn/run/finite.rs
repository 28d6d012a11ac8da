//! Numbers that are NaN or infinite: their first step, and messages about them.

use std::rc::Rc;

use xattn::{DType, Error, HostTensor};

/// Whether the numbers of each batch entry are finite. No step mixes entries.
#[derive(Debug, Clone, Default)]
pub struct States(Vec<State>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// All are finite.
    Finite,
    /// Some are not, in the inputs already.
    Given,
    /// Some are not, since this step.
    Since(Rc<str>),
}

/// Numbers of a tensor, or of a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// All.
    pub all: usize,
    /// NaN.
    pub nan: usize,
    /// Infinite.
    pub infinite: usize,
}

impl Count {
    /// Counts in the values of a tensor.
    ///
    /// # Errors
    /// A tensor in a file that cannot be read.
    pub fn of(tensor: &HostTensor<'_>) -> Result<Self, Error> {
        Ok(Count::in_bytes(tensor.dtype(), &tensor.bytes()?))
    }

    fn in_bytes(dtype: DType, bytes: &[u8]) -> Self {
        // The exponent has all bits set; NaN also has some bits of the fraction.
        let (exponent, sign): (u64, u64) = match dtype {
            DType::F64 => (0x7FF0_0000_0000_0000, 1 << 63),
            DType::F32 => (0x7F80_0000, 1 << 31),
            DType::BF16 => (0x7F80, 1 << 15),
            DType::F16 => (0x7C00, 1 << 15),
            _ => (u64::MAX, 0),
        };
        let mut count = Count { all: bytes.len() / dtype.size(), ..Count::default() };
        let mut look = |word: u64| {
            if word & exponent == exponent && sign != 0 {
                let infinite = word & !sign == exponent;
                count.infinite += usize::from(infinite);
                count.nan += usize::from(!infinite);
            }
        };
        match dtype.size() {
            2 => bytes.as_chunks().0.iter().for_each(|b| look(u16::from_le_bytes(*b).into())),
            4 => bytes.as_chunks().0.iter().for_each(|b| look(u32::from_le_bytes(*b).into())),
            _ => bytes.as_chunks().0.iter().for_each(|b| look(u64::from_le_bytes(*b))),
        }
        count
    }

    /// Whether all are finite.
    pub fn is_finite(self) -> bool {
        self.nan + self.infinite == 0
    }
}

/// Counts of each entry of the first dimension.
fn per_entry(tensor: &HostTensor<'_>) -> Result<Vec<Count>, Error> {
    let batch = tensor.shape().first().copied().unwrap_or(1);
    let bytes = tensor.bytes()?;
    let each = (bytes.len() / batch.max(1)).max(1);
    Ok(bytes.chunks(each).map(|entry| Count::in_bytes(tensor.dtype(), entry)).collect())
}

impl States {
    /// States of an input, and of its values in the dtype of the run.
    ///
    /// # Errors
    /// As [`Count::of`].
    pub fn of_input(name: &str, given: &HostTensor<'_>, rounded: &HostTensor<'_>) -> Result<Self, Error> {
        let rounded_counts = per_entry(rounded)?;
        if rounded_counts.iter().all(|count| count.is_finite()) {
            return Ok(States(vec![State::Finite; rounded_counts.len()]));
        }
        let since = State::Since(format!("{name} was rounded to {}", rounded.dtype()).into());
        let states = rounded_counts.iter().zip(per_entry(given)?).map(|(rounded, given)| {
            match (rounded.is_finite(), given == *rounded) {
                (true, _) => State::Finite,
                (_, true) => State::Given,
                _ => since.clone(),
            }
        });
        Ok(States(states.collect()))
    }

    /// States of a step's result. An entry that was not finite before keeps its state.
    ///
    /// # Errors
    /// As [`Count::of`].
    pub fn after(step: &str, result: &HostTensor<'_>, operands: &[&States]) -> Result<Self, Error> {
        let step: Rc<str> = step.into();
        let states = per_entry(result)?.into_iter().enumerate().map(|(entry, count)| {
            // The operand's state that says most: a step comes before the inputs.
            let before = operands.iter().filter_map(|states| states.0.get(entry)).max();
            match (count.is_finite(), before) {
                (true, _) => State::Finite,
                (false, None | Some(State::Finite)) => State::Since(step.clone()),
                (false, Some(before)) => before.clone(),
            }
        });
        Ok(States(states.collect()))
    }

    /// The first step with numbers that are not finite, if the inputs' are.
    pub fn since(&self) -> Option<&str> {
        self.0.iter().find_map(|state| match state {
            State::Since(step) => Some(&**step),
            _ => None,
        })
    }

    /// Numbers of a result that are not finite, without entries whose inputs were not.
    ///
    /// # Errors
    /// As [`Count::of`].
    pub fn arisen(&self, result: &HostTensor<'_>) -> Result<Count, Error> {
        let counts = per_entry(result)?.into_iter().zip(&self.0);
        let arisen = counts.filter(|(_, state)| matches!(state, State::Since(_))).map(|(count, _)| count);
        let sum = |a: Count, b: Count| Count { all: 0, nan: a.nan + b.nan, infinite: a.infinite + b.infinite };
        Ok(Count { all: result.elements(), ..arisen.fold(Count::default(), sum) })
    }
}

/// A dtype with a wider range.
pub fn wider(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "; f16 ends at 65504, --dtype bf16 and --dtype f32 at 3.4e38",
        DType::F64 => "",
        _ => "; f32 and bf16 end at 3.4e38, --device reference --dtype f64 at 1.8e308",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_are_counted_in_every_dtype() {
        let values = [1.0f64, f64::NAN, f64::INFINITY, -f64::INFINITY, -f64::NAN, 0.0, 65504.0];
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let tensor = HostTensor::from_slice(&values, &[7]).unwrap();
            let count = Count::of(&tensor.to_dtype(dtype).unwrap()).unwrap();
            assert_eq!(count, Count { all: 7, nan: 2, infinite: 2 }, "{dtype}");
        }
        let ones = HostTensor::from_slice(&[-1i32], &[1]).unwrap();
        assert_eq!(Count::of(&ones).unwrap(), Count { all: 1, ..Count::default() });
    }

    #[test]
    fn a_state_is_that_of_the_first_step_in_each_entry() {
        let given = HostTensor::from_slice(&[1.0f32, f32::NAN, 70000.0, 1.0], &[4, 1]).unwrap();
        let inputs = States::of_input("features", &given, &given.to_dtype(DType::F16).unwrap()).unwrap();
        assert_eq!(inputs.since(), Some("features was rounded to f16"));
        let all = HostTensor::from_slice(&[f32::NAN, f32::NAN, f32::NAN, 2.0], &[4, 1]).unwrap();
        let after = States::after("the resampler", &all, &[&inputs, &States::default()]).unwrap();
        let since = |text: &str| State::Since(text.into());
        assert_eq!(
            after.0,
            [since("the resampler"), State::Given, since("features was rounded to f16"), State::Finite]
        );
        assert_eq!(after.arisen(&all).unwrap(), Count { all: 4, nan: 2, infinite: 0 });
    }
}
