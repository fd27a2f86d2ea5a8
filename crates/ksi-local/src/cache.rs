//! What the model remembers of the tokens it has read: one key and one value each, per layer.

use candle_core::{DType, Device, Result, Tensor};

use crate::llama::Shape;

/// The cache grows by this many tokens at a time.
const STEP: usize = 256;

/// The keys and values of one conversation, in place.
pub(crate) struct Cache {
    layers: Vec<(Tensor, Tensor)>,
    shape: Shape,
    room: usize,
    len: usize,
}

impl Cache {
    pub(crate) fn new(shape: &Shape) -> Self {
        Self { layers: Vec::new(), shape: *shape, room: 0, len: 0 }
    }

    /// How many tokens it holds.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets all but the first `len` tokens.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Gives memory back that would only be needed by more than `len` tokens.
    pub(crate) fn shrink(&mut self, len: usize) -> Result<()> {
        if self.room <= len.next_multiple_of(STEP) {
            return Ok(());
        }
        self.resize(self.len.next_multiple_of(STEP))
    }

    /// Makes sure that this many more tokens fit.
    pub(crate) fn make_room(&mut self, more: usize) -> Result<()> {
        if self.len + more <= self.room {
            return Ok(());
        }
        self.resize((self.len + more).next_multiple_of(STEP))
    }

    /// Writes keys and values into a layer from a position on; the layer's up to their end.
    pub(crate) fn write(
        &self,
        layer: usize,
        start: usize,
        key: &Tensor,
        value: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        keys.slice_set(key, 1, start)?;
        values.slice_set(value, 1, start)?;
        let end = start + key.dim(1)?;
        Ok((keys.narrow(1, 0, end)?, values.narrow(1, 0, end)?))
    }

    /// Counts tokens as read, once every layer has them.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    fn resize(&mut self, room: usize) -> Result<()> {
        let old = std::mem::take(&mut self.layers);
        let len = std::mem::take(&mut self.len);
        self.room = 0;
        let empty = || {
            let dims = (self.shape.kv_heads, room, self.shape.head_width);
            Tensor::zeros(dims, DType::F32, &Device::Cpu)
        };
        let mut layers = Vec::with_capacity(self.shape.layers);
        for at in 0..self.shape.layers {
            let (keys, values) = (empty()?, empty()?);
            if let Some((old_keys, old_values)) = old.get(at)
                && len > 0
            {
                keys.slice_set(&old_keys.narrow(1, 0, len)?.contiguous()?, 1, 0)?;
                values.slice_set(&old_values.narrow(1, 0, len)?.contiguous()?, 1, 0)?;
            }
            layers.push((keys, values));
        }
        (self.layers, self.room, self.len) = (layers, room, len);
        Ok(())
    }
}
