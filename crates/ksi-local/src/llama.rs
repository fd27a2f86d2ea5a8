//! The model itself: a llama transformer with quantized weights.
//!
//! candle's own `quantized_llama` ends at 4,096 positions, hides its key-value cache so that it
//! cannot be cut back to a common prefix, and copies that cache for every token. This one keeps
//! the cache outside, in place, one per conversation.

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Result, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::rope_i;

use crate::cache::Cache;
use crate::error::Flaw;
use crate::gguf::Gguf;

/// Positions beyond this are not used, whatever the file allows: their cache would be too large.
const MAX_CONTEXT: usize = 8192;
/// Prompt tokens that are multiplied together, at positions that are multiples of it.
///
/// How many there are changes the last bits of the results. As every block but a prompt's last is
/// always the same one, an answer is the same whatever the cache held before.
pub(crate) const BLOCK: usize = 32;
/// Blocks for which a layer's weights are unpacked once.
const BLOCKS: usize = 8;

/// The weights, shared by all conversations.
pub(crate) struct Llama {
    embedding: QMatMul,
    layers: Vec<Layer>,
    norm: Tensor,
    output: Weight,
    cos: Tensor,
    sin: Tensor,
    shape: Shape,
}

/// The sizes that the rest follows from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
    pub(crate) context: usize,
    heads: usize,
    width: usize,
    inner_width: usize,
    vocabulary: usize,
    epsilon: f32,
}

struct Layer {
    attention_norm: Tensor,
    query: Weight,
    key: Weight,
    value: Weight,
    attention_output: Weight,
    inner_norm: Tensor,
    gate: Weight,
    up: Weight,
    down: Weight,
}

struct Weight(QMatMul);

impl Weight {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(x)
    }

    fn unpacked(&self) -> Result<Self> {
        let QMatMul::QTensor(packed) = &self.0 else { return Ok(Self(self.0.clone())) };
        Ok(Self(QMatMul::Tensor(packed.dequantize(&Device::Cpu)?)))
    }
}

/// Some tokens on their way through the layers.
struct Block {
    x: Tensor,
    start: usize,
    mask: Option<Tensor>,
}

impl Llama {
    pub(crate) fn read(file: &mut Gguf, vocabulary: usize) -> std::result::Result<Self, Flaw> {
        let shape = Shape::read(file, vocabulary)?;
        let embedding = QMatMul::from_qtensor(
            file.tensor("token_embd.weight", &[shape.vocabulary, shape.width])?,
        )?;
        let output = if file.has_tensor("output.weight") {
            file.weight("output", shape.vocabulary, shape.width)?
        } else {
            Weight(embedding.clone())
        };
        let layers = (0..shape.layers).map(|at| Layer::read(file, at, &shape));
        let layers = layers.collect::<std::result::Result<_, _>>()?;
        let norm = file.vector("output_norm", shape.width)?;
        let base = file.float("llama.rope.freq_base").unwrap_or(10_000.0);
        let (cos, sin) = rotations(&shape, base)?;
        Ok(Self { embedding, layers, norm, output, cos, sin, shape })
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Reads prompt tokens behind what the cache holds, which are whole blocks; the scores of the
    /// token that follows.
    ///
    /// Against unpacked weights that takes a quarter of the time, unpacking included.
    pub(crate) fn read_prompt(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        if tokens.is_empty() || !cache.len().is_multiple_of(BLOCK) {
            candle_core::bail!("{} tokens cannot follow {}", tokens.len(), cache.len())
        }
        let mut last = Vec::new();
        for tokens in tokens.chunks(BLOCK * BLOCKS) {
            self.make_room(tokens.len(), cache)?;
            let starts = (cache.len()..).step_by(BLOCK);
            let blocks = tokens.chunks(BLOCK).zip(starts);
            let mut blocks = blocks
                .map(|(tokens, start)| self.block(tokens, start))
                .collect::<Result<Vec<_>>>()?;
            for (at, layer) in self.layers.iter().enumerate() {
                let layer = layer.unpacked()?;
                for block in &mut blocks {
                    self.pass(&layer, at, block, cache)?;
                }
            }
            cache.advance(tokens.len());
            last = blocks;
        }
        let Some(Block { x, .. }) = last.pop() else { candle_core::bail!("there is no block") };
        self.scores(&x.narrow(0, x.dim(0)? - 1, 1)?)
    }

    /// Reads one token of the answer; the scores of the token that follows.
    pub(crate) fn read_token(&self, token: u32, cache: &mut Cache) -> Result<Vec<f32>> {
        self.make_room(1, cache)?;
        let mut block = self.block(&[token], cache.len())?;
        for (at, layer) in self.layers.iter().enumerate() {
            self.pass(layer, at, &mut block, cache)?;
        }
        cache.advance(1);
        self.scores(&block.x)
    }

    fn make_room(&self, tokens: usize, cache: &mut Cache) -> Result<()> {
        if cache.len() + tokens > self.shape.context {
            candle_core::bail!("the context of {} tokens is full", self.shape.context)
        }
        cache.make_room(tokens)
    }

    fn block(&self, tokens: &[u32], start: usize) -> Result<Block> {
        let x = self.embedding.embedding(&Tensor::new(tokens, &Device::Cpu)?)?;
        let mask = if tokens.len() > 1 { Some(causal_mask(tokens.len(), start)?) } else { None };
        Ok(Block { x, start, mask })
    }

    fn scores(&self, x: &Tensor) -> Result<Vec<f32>> {
        let x = rms_norm(&x.contiguous()?, &self.norm, self.shape.epsilon)?;
        self.output.apply(&x)?.squeeze(0)?.to_vec1()
    }

    fn pass(&self, layer: &Layer, at: usize, block: &mut Block, cache: &Cache) -> Result<()> {
        block.x = (&block.x + self.attend(layer, at, block, cache)?)?;
        block.x = (&block.x + self.think(layer, &block.x)?)?;
        Ok(())
    }

    fn attend(&self, layer: &Layer, at: usize, block: &Block, cache: &Cache) -> Result<Tensor> {
        let Shape { heads, kv_heads, head_width, width, epsilon, .. } = self.shape;
        let count = block.x.dim(0)?;
        let x = rms_norm(&block.x, &layer.attention_norm, epsilon)?;
        let query = self.turn(&layer.query.apply(&x)?, heads, block.start)?;
        let key = self.turn(&layer.key.apply(&x)?, kv_heads, block.start)?;
        let value = by_head(&layer.value.apply(&x)?, kv_heads)?;
        let (keys, values) = cache.write(at, block.start, &key, &value)?;

        // The heads that share keys are stacked, so that the keys need no copies.
        let stacked = heads / kv_heads * count;
        let query = query.reshape((kv_heads, stacked, head_width))?;
        let scores = (query.matmul(&keys.t()?)? / (head_width as f64).sqrt())?;
        let scores = match &block.mask {
            None => scores,
            Some(mask) => scores.reshape((heads, count, ()))?.broadcast_add(mask)?.reshape((
                kv_heads,
                stacked,
                (),
            ))?,
        };
        let seen = softmax_last_dim(&scores)?.matmul(&values)?;
        let seen = seen.reshape((heads, count, head_width))?.transpose(0, 1)?;
        layer.attention_output.apply(&seen.reshape((count, width))?)
    }

    fn think(&self, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        let x = rms_norm(x, &layer.inner_norm, self.shape.epsilon)?;
        let gate = silu(&layer.gate.apply(&x)?)?;
        layer.down.apply(&(gate * layer.up.apply(&x)?)?)
    }

    /// Splits into heads and rotates each by its position.
    fn turn(&self, x: &Tensor, heads: usize, start: usize) -> Result<Tensor> {
        let x = by_head(x, heads)?.unsqueeze(0)?;
        let count = x.dim(2)?;
        let cos = self.cos.narrow(0, start, count)?;
        let sin = self.sin.narrow(0, start, count)?;
        rope_i(&x, &cos, &sin)?.squeeze(0)
    }
}

impl Shape {
    fn read(file: &Gguf, vocabulary: usize) -> std::result::Result<Self, Flaw> {
        let architecture = file.text("general.architecture").unwrap_or("unknown");
        if architecture != "llama" {
            return Err(Flaw(format!("its architecture is {architecture} and only llama can run")));
        }
        let width = file.size("llama.embedding_length", 1 << 16)?;
        let heads = file.size("llama.attention.head_count", 1 << 10)?;
        let kv_heads = file.size("llama.attention.head_count_kv", 1 << 10)?;
        let head_width = width / heads;
        let rotated = file.size("llama.rope.dimension_count", 1 << 16)?;
        if head_width * heads != width || heads % kv_heads != 0 {
            return Err(Flaw(format!("{heads} and {kv_heads} heads do not divide {width}")));
        }
        if rotated != head_width || head_width % 2 != 0 {
            return Err(Flaw(format!("it rotates {rotated} of {head_width} numbers of a head")));
        }
        let epsilon = file.float("llama.attention.layer_norm_rms_epsilon").unwrap_or(1e-5);
        Ok(Self {
            layers: file.size("llama.block_count", 1 << 10)?,
            kv_heads,
            head_width,
            context: file.size("llama.context_length", 1 << 30)?.min(MAX_CONTEXT),
            heads,
            width,
            inner_width: file.size("llama.feed_forward_length", 1 << 20)?,
            vocabulary,
            epsilon: epsilon as f32,
        })
    }
}

impl Layer {
    fn read(file: &mut Gguf, at: usize, shape: &Shape) -> std::result::Result<Self, Flaw> {
        let Shape { width, inner_width, .. } = *shape;
        let kv_width = shape.kv_heads * shape.head_width;
        let name = |part: &str| format!("blk.{at}.{part}");
        Ok(Self {
            attention_norm: file.vector(&name("attn_norm"), width)?,
            query: file.weight(&name("attn_q"), width, width)?,
            key: file.weight(&name("attn_k"), kv_width, width)?,
            value: file.weight(&name("attn_v"), kv_width, width)?,
            attention_output: file.weight(&name("attn_output"), width, width)?,
            inner_norm: file.vector(&name("ffn_norm"), width)?,
            gate: file.weight(&name("ffn_gate"), inner_width, width)?,
            up: file.weight(&name("ffn_up"), inner_width, width)?,
            down: file.weight(&name("ffn_down"), width, inner_width)?,
        })
    }
}

impl Layer {
    fn unpacked(&self) -> Result<Self> {
        Ok(Self {
            attention_norm: self.attention_norm.clone(),
            query: self.query.unpacked()?,
            key: self.key.unpacked()?,
            value: self.value.unpacked()?,
            attention_output: self.attention_output.unpacked()?,
            inner_norm: self.inner_norm.clone(),
            gate: self.gate.unpacked()?,
            up: self.up.unpacked()?,
            down: self.down.unpacked()?,
        })
    }
}

impl Gguf {
    fn weight(
        &mut self,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Weight, Flaw> {
        let packed = self.tensor(&format!("{name}.weight"), &[rows, columns])?;
        Ok(Weight(QMatMul::from_qtensor(with_a_kernel(packed)?)?))
    }

    fn vector(&mut self, name: &str, width: usize) -> std::result::Result<Tensor, Flaw> {
        let packed = self.tensor(&format!("{name}.weight"), &[width])?;
        Ok(packed.dequantize(&Device::Cpu)?)
    }
}

/// The weights in a packing that candle multiplies with vector instructions.
///
/// It has none for these three. As eight-bit numbers they take half as much memory again or more,
/// lose next to nothing, and answer almost twice as fast, also in a build for any processor.
fn with_a_kernel(packed: QTensor) -> Result<QTensor> {
    match packed.dtype() {
        GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1 => {
            QTensor::quantize(&packed.dequantize(&Device::Cpu)?, GgmlDType::Q8_0)
        }
        _ => Ok(packed),
    }
}

/// (tokens, heads x width) to (heads, tokens, width).
fn by_head(x: &Tensor, heads: usize) -> Result<Tensor> {
    x.reshape((x.dim(0)?, heads, ()))?.transpose(0, 1)?.contiguous()
}

/// What token `row` of a chunk may not see: the tokens behind it.
fn causal_mask(count: usize, start: usize) -> Result<Tensor> {
    let width = start + count;
    let hidden = |row, column| if column > start + row { f32::NEG_INFINITY } else { 0.0 };
    let mask = (0..count).flat_map(|row| (0..width).map(move |column| hidden(row, column)));
    Tensor::from_iter(mask, &Device::Cpu)?.reshape((count, width))
}

fn rotations(shape: &Shape, base: f64) -> Result<(Tensor, Tensor)> {
    let half = shape.head_width / 2;
    let speed = |at: usize| base.powf(-2.0 * at as f64 / shape.head_width as f64);
    let angles = (0..shape.context)
        .flat_map(|position| (0..half).map(move |at| (position as f64 * speed(at)) as f32));
    let angles = Tensor::from_iter(angles, &Device::Cpu)?.reshape((shape.context, half))?;
    Ok((angles.cos()?, angles.sin()?))
}
