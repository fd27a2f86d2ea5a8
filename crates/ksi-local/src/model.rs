//! A loaded model and the writing of one answer.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use crate::conversations::Conversations;
use crate::error::{Error, Flaw, Refusal};
use crate::gguf::Gguf;
use crate::llama::Llama;
use crate::prompt::{self, Prompt};
use crate::protocol::{Done, Request, Usage};
use crate::tokenizer::Tokenizer;
use crate::writer::{Stopped, Writer};

/// Weights, vocabulary, and what is kept of the conversations.
pub(crate) struct Model {
    llama: Llama,
    tokenizer: Tokenizer,
    conversations: Conversations,
}

impl Model {
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        let file =
            File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Self::read(file).map_err(|Flaw(reason)| Error::Unusable { path: path.to_owned(), reason })
    }

    fn read(file: File) -> Result<Self, Flaw> {
        let mut file = Gguf::read(file)?;
        let tokenizer = Tokenizer::read(&mut file)?;
        let llama = Llama::read(&mut file, tokenizer.size())?;
        Ok(Self { llama, tokenizer, conversations: Conversations::default() })
    }

    /// Writes one answer, each piece to `say` as soon as it is known.
    pub(crate) fn answer(
        &mut self,
        request: &Request,
        say: impl FnMut(String) -> Result<(), Error>,
    ) -> Result<Done, Stopped> {
        let began = Instant::now();
        let context = self.llama.shape().context;
        check(request, context)?;
        let Prompt { tokens, dropped } =
            prompt::fit(&request.messages, context - request.max_tokens, &self.tokenizer)?;
        let name = request.conversation.as_deref();
        let mut memory = self.conversations.recall(name, &tokens, self.llama.shape());
        let cached = memory.cache.len();
        memory.cache.make_room(tokens.len() - cached + request.max_tokens)?;
        let scores = self.llama.read_prompt(&tokens[cached..], &mut memory.cache)?;
        let mut writer = Writer::new(&self.llama, &self.tokenizer, request, &mut memory.cache)?;
        let stop_reason = writer.write(scores, say)?;
        let usage = Usage { input: tokens.len(), output: writer.written, cached };
        self.conversations.keep(name, tokens, memory.cache)?;
        let duration_ms = began.elapsed().as_millis() as u64;
        Ok(Done { stop_reason, usage, duration_ms, dropped })
    }
}

fn check(request: &Request, context: usize) -> Result<(), Refusal> {
    let most = context / 2;
    if !(1..=most).contains(&request.max_tokens) {
        return Err(Refusal::BadRequest(format!("`max_tokens` is not between 1 and {most}")));
    }
    let sampling = &request.sampling;
    let numbers = [sampling.temperature, sampling.top_p, sampling.repetition_penalty];
    if numbers.iter().any(|number| !number.is_finite() || *number < 0.0) {
        return Err(Refusal::BadRequest("a sampling value is negative or too large".to_owned()));
    }
    if sampling.repetition_penalty < 1.0 {
        return Err(Refusal::BadRequest("`repetition_penalty` is below 1".to_owned()));
    }
    Ok(())
}
