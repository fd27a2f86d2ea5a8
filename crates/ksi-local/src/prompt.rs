//! Turns to tokens in the ChatML template, cut to the context.

use crate::error::Refusal;
use crate::protocol::{Message, Role};
use crate::tokenizer::Tokenizer;

/// A prompt that fits.
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    /// Turns that were left out.
    pub(crate) dropped: usize,
}

/// The turns as tokens, at most `room`: the system message and the newest turns stay, the oldest
/// turns between them go.
pub(crate) fn fit(
    messages: &[Message],
    room: usize,
    tokenizer: &Tokenizer,
) -> Result<Prompt, Refusal> {
    let (system, turns) = match messages.split_first() {
        Some((first, rest)) if first.role == Role::System => (Some(first), rest),
        _ => (None, messages),
    };
    let Some((newest, older)) = turns.split_last() else {
        return Err(Refusal::BadRequest("`messages` has no turn to answer".to_owned()));
    };
    let head = system.map(|message| turn(message, tokenizer)).transpose()?.unwrap_or_default();
    let mut tail = vec![turn(newest, tokenizer)?];
    let opening = opening(Role::Assistant, tokenizer)?;
    let mut needed = head.len() + tail[0].len() + opening.len();
    if needed > room {
        return Err(Refusal::TooLong { needed, room });
    }
    for message in older.iter().rev() {
        let tokens = turn(message, tokenizer)?;
        if needed + tokens.len() > room {
            break;
        }
        needed += tokens.len();
        tail.push(tokens);
    }
    let dropped = turns.len() - tail.len();
    tail.reverse();
    let tokens = [head, tail.concat(), opening].concat();
    Ok(Prompt { tokens, dropped })
}

fn turn(message: &Message, tokenizer: &Tokenizer) -> Result<Vec<u32>, Refusal> {
    let mut tokens = vec![tokenizer.turn_start];
    tokens.extend(tokenizer.encode(&format!("{}\n{}", name(message.role), message.content))?);
    tokens.push(tokenizer.turn_end);
    tokens.extend(tokenizer.encode("\n")?);
    Ok(tokens)
}

fn opening(role: Role, tokenizer: &Tokenizer) -> Result<Vec<u32>, Refusal> {
    let mut tokens = vec![tokenizer.turn_start];
    tokens.extend(tokenizer.encode(&format!("{}\n", name(role)))?);
    Ok(tokens)
}

fn name(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}
