//! Text to tokens and back, from the vocabulary and merges in the model file.

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

use crate::error::{Flaw, Refusal};
use crate::gguf::Gguf;

const NORMAL_TOKEN: i64 = 1;

/// A byte-level tokenizer that never makes a control token out of text.
///
/// It does not know the control tokens by their spelling: `<|im_end|>` in somebody's text becomes
/// the pieces of those ten characters. Only the prompt template places the real ones, by id.
pub(crate) struct Tokenizer {
    bpe: tokenizers::Tokenizer,
    /// What each token stands for; `None` is a control token, which no answer contains.
    bytes: Vec<Option<Box<[u8]>>>,
    /// Begins a turn in a prompt.
    pub(crate) turn_start: u32,
    /// Ends a turn in a prompt.
    pub(crate) turn_end: u32,
    /// Any of these ends an answer.
    pub(crate) ends: Vec<u32>,
    /// The tokens that end a sentence and are nothing else.
    pub(crate) full_stops: Vec<u32>,
}

impl Tokenizer {
    pub(crate) fn read(file: &mut Gguf) -> Result<Self, Flaw> {
        let model = file.text("tokenizer.ggml.model").unwrap_or("unknown");
        if model != "gpt2" {
            return Err(Flaw(format!("its tokenizer is {model} and only byte-level ones can run")));
        }
        let tokens = file.texts("tokenizer.ggml.tokens")?;
        let merges = file.texts("tokenizer.ggml.merges")?;
        let kinds = file.integers("tokenizer.ggml.token_type").unwrap_or_default();
        let is_text = |id: usize| kinds.get(id).is_none_or(|kind| *kind == NORMAL_TOKEN);
        let characters = byte_of_character();
        let bytes: Vec<_> = tokens
            .iter()
            .enumerate()
            .map(|(id, token)| if is_text(id) { spelled(token, &characters) } else { None })
            .collect();
        let find = |name: &str| tokens.iter().position(|token| token == name).map(|id| id as u32);
        let turn_start = find("<|im_start|>").ok_or_else(|| no_template("<|im_start|>"))?;
        let turn_end = find("<|im_end|>").ok_or_else(|| no_template("<|im_end|>"))?;
        let named = [Some(turn_end), find("<|endoftext|>"), end_of_text(file, tokens.len())];
        let full_stops = [".", "!", "?"].into_iter().filter_map(find).collect();
        Ok(Self {
            bpe: build(tokens, &merges)?,
            bytes,
            turn_start,
            turn_end,
            ends: named.into_iter().flatten().collect(),
            full_stops,
        })
    }

    /// How many tokens there are.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, Refusal> {
        let encoding = self.bpe.encode_fast(text, false);
        let encoding = encoding.map_err(|error| Refusal::BadRequest(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The bytes of a token, or nothing if it is a control token.
    pub(crate) fn bytes(&self, token: u32) -> Option<&[u8]> {
        self.bytes.get(token as usize)?.as_deref()
    }
}

fn no_template(token: &str) -> Flaw {
    Flaw(format!("its vocabulary has no {token}, so it is not a chat model of the ChatML kind"))
}

fn end_of_text(file: &Gguf, tokens: usize) -> Option<u32> {
    let id = u32::try_from(file.integer("tokenizer.ggml.eos_token_id")?).ok()?;
    ((id as usize) < tokens).then_some(id)
}

fn build(tokens: Vec<String>, merges: &[String]) -> Result<tokenizers::Tokenizer, Flaw> {
    let pairs = pairs(&tokens, merges)?;
    let vocabulary: Vocab = tokens.into_iter().zip(0..).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, pairs)
        .build()
        .map_err(|error| Flaw(format!("its merges do not fit its vocabulary: {error}")))?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    let split: [PreTokenizerWrapper; 2] =
        [Digits::new(true).into(), ByteLevel::new(false, false, true).into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(split.into())));
    Ok(tokenizer)
}

/// The merges as pairs, each checked: the crate that applies them trusts them to make tokens.
fn pairs(tokens: &[String], merges: &[String]) -> Result<Vec<(String, String)>, Flaw> {
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let pair = |merge: &String| {
        let (left, right) = merge.split_once(' ')?;
        let makes_a_token = known.contains(format!("{left}{right}").as_str());
        let fits = known.contains(left) && known.contains(right) && makes_a_token;
        fits.then(|| (left.to_owned(), right.to_owned()))
    };
    let pairs = merges.iter().map(pair).collect::<Option<_>>();
    pairs.ok_or_else(|| Flaw("its merges do not fit its vocabulary".to_owned()))
}

/// The bytes a token's spelling stands for, or nothing if it is spelled in other characters.
fn spelled(token: &str, characters: &HashMap<char, u8>) -> Option<Box<[u8]>> {
    if token.is_empty() {
        return None;
    }
    token.chars().map(|character| characters.get(&character).copied()).collect()
}

/// Byte-level vocabularies spell each byte as a printable character: bytes that print as
/// themselves stay, the others follow one after the other from U+0100 on.
fn byte_of_character() -> HashMap<char, u8> {
    let mut moved = (0x100..).filter_map(char::from_u32);
    let spelling = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => Some(char::from(byte)),
        _ => moved.next(),
    };
    let spellings: Vec<_> = (0..=u8::MAX).map(spelling).collect();
    spellings.into_iter().zip(0..=u8::MAX).filter_map(|(c, byte)| Some((c?, byte))).collect()
}
