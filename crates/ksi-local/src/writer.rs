//! Writes an answer, token by token.

use std::collections::HashSet;

use crate::answer::Answer;
use crate::cache::Cache;
use crate::error::{Error, Refusal};
use crate::llama::Llama;
use crate::protocol::{Request, StopReason};
use crate::sampler::Sampler;
use crate::tokenizer::Tokenizer;
use crate::words::Runs;

/// From this part of its limit on, an answer ends with the sentence it is in.
const NEAR_THE_END: f32 = 0.75;
/// How much likelier a full stop becomes between there and the limit.
const FULL_STOP_BONUS: f32 = 6.0;

/// Why an answer broke off.
pub(crate) enum Stopped {
    Refused(Refusal),
    Unheard(Error),
}

impl<E: Into<Refusal>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

/// One answer while it is written.
pub(crate) struct Writer<'a> {
    llama: &'a Llama,
    tokenizer: &'a Tokenizer,
    cache: &'a mut Cache,
    limit: usize,
    sampler: Sampler,
    answer: Answer,
    /// Tokens that should become less likely.
    used: HashSet<u32>,
    /// Tokens so far.
    pub(crate) written: usize,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(
        llama: &'a Llama,
        tokenizer: &'a Tokenizer,
        request: &Request,
        cache: &'a mut Cache,
    ) -> Result<Self, Refusal> {
        let mut runs = Runs::default();
        let said = request.messages.iter().map(|message| &message.content);
        said.chain(&request.avoid).for_each(|text| runs.forbid(text));
        // Also the words of the turn it answers, because a small model likes to echo them.
        let answered = request.messages.last().map_or("", |message| &message.content);
        Ok(Self {
            llama,
            tokenizer,
            cache,
            limit: request.max_tokens,
            sampler: Sampler::new(request.sampling, request.seed),
            answer: Answer::new(runs),
            used: tokenizer.encode(answered)?.into_iter().collect(),
            written: 0,
        })
    }

    /// Writes to the end, from the scores that the prompt gave.
    pub(crate) fn write(
        &mut self,
        mut scores: Vec<f32>,
        mut say: impl FnMut(String) -> Result<(), Error>,
    ) -> Result<StopReason, Stopped> {
        loop {
            let Some(token) = self.choose(&mut scores)? else { return Ok(StopReason::End) };
            let piece = self.push(token);
            if !piece.is_empty() {
                say(piece).map_err(Stopped::Unheard)?;
            }
            if self.progress() >= NEAR_THE_END && self.answer.ends_a_sentence() {
                return Ok(StopReason::End);
            }
            if self.written == self.limit {
                return Ok(StopReason::MaxTokens);
            }
            scores = self.llama.read_token(token, self.cache)?;
        }
    }

    fn progress(&self) -> f32 {
        self.written as f32 / self.limit as f32
    }

    fn push(&mut self, token: u32) -> String {
        self.used.insert(token);
        self.written += 1;
        self.answer.push(self.tokenizer.bytes(token).unwrap_or_default())
    }

    /// The next token, or nothing if the answer ends here.
    fn choose(&mut self, scores: &mut [f32]) -> Result<Option<u32>, Refusal> {
        self.sampler.penalize(scores, &self.used);
        self.favour_full_stops(scores);
        let (tokenizer, answer) = (self.tokenizer, &self.answer);
        let allows = |token: u32| match tokenizer.bytes(token) {
            Some(bytes) => answer.allows(bytes),
            None => tokenizer.ends.contains(&token) && answer.may_end(),
        };
        let Some(token) = self.sampler.choose(scores, allows) else {
            return if self.written > 0 { Ok(None) } else { Err(Refusal::NoScores) };
        };
        Ok(self.tokenizer.bytes(token).is_some().then_some(token))
    }

    /// Near the limit a sentence should come to its end before it is cut.
    fn favour_full_stops(&self, scores: &mut [f32]) {
        let late = (self.progress() - NEAR_THE_END) / (1.0 - NEAR_THE_END);
        if late < 0.0 || !self.answer.ends_in_a_word() {
            return;
        }
        for &token in &self.tokenizer.full_stops {
            if let Some(score) = scores.get_mut(token as usize) {
                *score += FULL_STOP_BONUS * late;
            }
        }
    }
}
