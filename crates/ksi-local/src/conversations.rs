//! What is kept between the turns of a conversation.

use std::collections::VecDeque;

use crate::cache::Cache;
use crate::llama::{BLOCK, Shape};

/// Conversations kept at a time; the one unused for longest goes first.
const CONVERSATIONS: usize = 4;
/// Prompt tokens kept of each: with SmolLM2-135M 94 MB.
const KEPT_TOKENS: usize = 2048;

/// The caches of the last few conversations.
#[derive(Default)]
pub(crate) struct Conversations {
    kept: VecDeque<(String, Memory)>,
}

/// A prompt that was read, and the cache of it.
pub(crate) struct Memory {
    tokens: Vec<u32>,
    pub(crate) cache: Cache,
}

impl Conversations {
    /// The memory of a conversation, cut to what it shares with this prompt.
    ///
    /// Only whole blocks are shared. The last token of a prompt is always read again, because its
    /// scores are needed.
    pub(crate) fn recall(&mut self, name: Option<&str>, prompt: &[u32], shape: &Shape) -> Memory {
        let mut memory = self.take(name).unwrap_or_else(|| Memory::new(shape));
        let pairs = memory.tokens.iter().zip(prompt);
        let shared = pairs.take_while(|(ours, theirs)| ours == theirs).count();
        let shared = shared.min(prompt.len().saturating_sub(1));
        memory.cache.truncate(shared - shared % BLOCK);
        memory
    }

    /// Keeps the prompt's part of a conversation for its next turn.
    ///
    /// The answer's part is dropped and read again as part of the next prompt: token by token it
    /// is computed with other roundings, and an answer should not depend on what was kept.
    pub(crate) fn keep(
        &mut self,
        name: Option<&str>,
        prompt: Vec<u32>,
        mut cache: Cache,
    ) -> candle_core::Result<()> {
        let Some(name) = name else { return Ok(()) };
        cache.truncate(prompt.len().min(KEPT_TOKENS));
        cache.shrink(KEPT_TOKENS)?;
        if self.kept.len() == CONVERSATIONS {
            self.kept.pop_front();
        }
        self.kept.push_back((name.to_owned(), Memory { tokens: prompt, cache }));
        Ok(())
    }

    fn take(&mut self, name: Option<&str>) -> Option<Memory> {
        let at = self.kept.iter().position(|(kept, _)| Some(kept.as_str()) == name)?;
        self.kept.remove(at).map(|(_, memory)| memory)
    }
}

impl Memory {
    fn new(shape: &Shape) -> Self {
        Self { tokens: Vec::new(), cache: Cache::new(shape) }
    }
}
