//! Matrices prepared for `linear`.

use std::any::Any;

use crate::size::Size;
use crate::tensor::HostTensor;
use crate::{DType, Error, Result};

/// Constant matrices in host memory that become one prepared [`Weight`].
///
/// All parts share their second dimension `K`. `parts` are stacked by rows: `[W_q; W_k; W_v]` in
/// one GEMM. With `glu`, `parts` are the gate rows and `up` the rows that the gate multiplies
/// (SwiGLU), equally many.
pub struct WeightSource<'a> {
    /// Matrices `[n_i, K]`, stacked.
    pub parts: Vec<HostTensor<'a>>,
    /// For gated activations: matrices `[m_i, K]` with the same total of rows.
    pub up: Vec<HostTensor<'a>>,
}

impl<'a> WeightSource<'a> {
    /// One GEMM for several matrices, stacked by rows.
    pub fn stacked(parts: Vec<HostTensor<'a>>) -> Self {
        WeightSource { parts, up: Vec::new() }
    }

    /// The two halves of a gated activation.
    pub fn glu(gate: HostTensor<'a>, up: HostTensor<'a>) -> Self {
        WeightSource { parts: vec![gate], up: vec![up] }
    }

    /// `(N, K, glu)`: rows of the product's result, columns of the matrix, and whether there is an
    /// `up` half.
    ///
    /// # Errors
    /// No part, a part that is no matrix of reals, or extents that do not fit together.
    pub fn dims(&self) -> Result<(usize, usize, bool)> {
        let refuse = |expected: String, actual: String| Err(Error::argument("linear", "weight", expected, actual));
        let Some(first) = self.parts.first() else {
            return refuse("at least one matrix".into(), "none".into());
        };
        let k = first.shape().get(1).copied().unwrap_or(0);
        for part in self.parts.iter().chain(&self.up) {
            if part.shape().len() != 2 || part.shape()[1] != k || !part.dtype().is_float() {
                return refuse(
                    format!("matrices of reals with {k} columns"),
                    format!("{}{:?}", part.dtype(), part.shape()),
                );
            }
        }
        let rows = |parts: &[HostTensor<'_>]| {
            let n = parts.iter().map(|p| Size::of(p.shape()[0])).sum::<Size>();
            n.or_refuse("linear", "weight", format!("{} stacked matrices", parts.len()))
        };
        let n = rows(&self.parts)?;
        let up = rows(&self.up)?;
        if !self.up.is_empty() && up != n {
            return refuse(format!("{n} rows in `up`"), up.to_string());
        }
        Ok((n, k, !self.up.is_empty()))
    }
}

/// A constant matrix, packed for one device. `Send + Sync`; shared (`Arc`) between bridges, layers
/// and threads.
pub struct Weight {
    /// In the form of the backend that packed it.
    packed: Box<dyn Any + Send + Sync>,
    n: usize,
    k: usize,
    glu: bool,
    dtype: DType,
}

impl Weight {
    /// A backend's packed matrix, of checked dimensions ([`WeightSource::dims`]).
    pub(crate) fn new(packed: impl Any + Send + Sync, (n, k, glu): (usize, usize, bool), dtype: DType) -> Self {
        Weight { packed: Box::new(packed), n, k, glu, dtype }
    }

    /// The packed matrix, if it is of this backend's type.
    pub(crate) fn packed<P: 'static>(&self) -> Option<&P> {
        self.packed.downcast_ref()
    }

    /// Rows of the matrix: columns of the result.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns of the matrix: columns of `x`.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Whether a call prepared with one accepts the other: equal shape, dtype, number of halves.
    pub(crate) fn is_like(&self, other: &Weight) -> bool {
        let form = |w: &Weight| (w.n, w.k, w.glu, w.dtype);
        form(self) == form(other)
    }

    /// Whether there is a second matrix for a gated activation.
    pub fn is_glu(&self) -> bool {
        self.glu
    }

    /// Element type of the packed matrix.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

impl std::fmt::Debug for Weight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let glu = if self.glu { "2x" } else { "" };
        write!(f, "Weight({}{glu}[{}, {}])", self.dtype, self.n, self.k)
    }
}
