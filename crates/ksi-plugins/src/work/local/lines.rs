//! The lines between us and the child that holds the model.

use serde::{Deserialize, Serialize};

use crate::work::provider::{Message, Request, Role};

/// A request, as the child reads it.
#[derive(Debug, Serialize)]
pub(super) struct Question<'a> {
    pub(super) id: &'a str,
    conversation: &'a str,
    messages: Vec<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    avoid: &'a [String],
}

/// What the child says.
#[derive(Debug, Deserialize)]
pub(super) struct Line {
    pub(super) id: Option<String>,
    #[serde(flatten)]
    pub(super) said: Said,
}

/// The kinds of lines.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Said {
    Ready(serde::de::IgnoredAny),
    Token(String),
    Done(Done),
    Error(Trouble),
}

/// How an answer ended.
#[derive(Debug, Deserialize)]
pub(super) struct Done {
    pub(super) stop_reason: String,
    #[serde(default)]
    pub(super) usage: Tokens,
}

/// What an answer took.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tokens {
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) cached: u64,
}

/// Why there is no answer.
#[derive(Debug, Deserialize)]
pub(super) struct Trouble {
    pub(super) code: String,
    pub(super) message: String,
}

impl<'a> Question<'a> {
    pub(super) fn new(request: &'a Request) -> Self {
        let instructions = request.instructions.iter();
        let system =
            instructions.map(|content| Message { role: Role::System, content: content.clone() });
        Question {
            id: &request.request_id,
            conversation: &request.conversation_id,
            messages: system.chain(request.messages.iter().cloned()).collect(),
            max_tokens: request.max_tokens,
            seed: request.seed,
            temperature: request.temperature,
            avoid: &request.avoid_repeats,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_go_first_as_the_system_message() {
        let request = Request {
            request_id: "req_1".into(),
            attempt: 1,
            conversation_id: "ada".into(),
            model: "local".into(),
            instructions: Some("be brief".into()),
            messages: vec![Message::user("hello")],
            max_tokens: Some(40),
            seed: 7,
            temperature: None,
            avoid_repeats: vec!["a b c".into()],
        };
        let line = serde_json::to_string(&Question::new(&request)).unwrap();
        assert_eq!(
            line,
            r#"{"id":"req_1","conversation":"ada","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hello"}],"max_tokens":40,"seed":7,"avoid":["a b c"]}"#
        );
    }

    #[test]
    fn every_kind_of_line_is_read() {
        let read = |line| serde_json::from_str::<Line>(line).unwrap();
        let ready = read(r#"{"ready":{"model":"M","load_ms":301}}"#);
        assert!(ready.id.is_none() && matches!(ready.said, Said::Ready(_)));
        let token = read(r#"{"id":"r1","token":" I"}"#);
        assert_eq!(token.id.as_deref(), Some("r1"));
        assert!(matches!(token.said, Said::Token(text) if text == " I"));
        let done = r#"{"id":"r1","done":{"stop_reason":"max_tokens","usage":{"input":4,"output":8,"cached":2},"duration_ms":19,"dropped":0}}"#;
        let Said::Done(done) = read(done).said else { panic!("it is done") };
        assert_eq!((done.stop_reason.as_str(), done.usage.cached), ("max_tokens", 2));
        let error = read(r#"{"id":null,"error":{"code":"model_unusable","message":"no"}}"#);
        assert!(matches!(error.said, Said::Error(trouble) if trouble.code == "model_unusable"));
    }
}
