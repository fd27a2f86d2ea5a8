//! The local model: a small language model on the processor.
//!
//! [`serve`] is the whole life of a child process: it loads a GGUF file and answers requests, one
//! at a time, as lines of JSON.
//!
//! In, one object per line; only `id` and `messages` must be there:
//!
//! ```json
//! {"id":"r1","conversation":"o_1/ada","messages":[{"role":"user","content":"Is P=NP?"}],
//!  "max_tokens":120,"seed":7,"temperature":0.5,"top_p":0.9,"top_k":40,
//!  "repetition_penalty":1.1,"avoid":["a text whose runs of words may not come again"]}
//! ```
//!
//! Out: `ready` once, then per request any number of `token` and at the end `done` or `error`:
//!
//! ```json
//! {"ready":{"model":"SmolLM2-135M-Instruct","load_ms":301}}
//! {"id":"r1","token":"I think"}
//! {"id":"r1","done":{"stop_reason":"end","usage":{"input":41,"output":87,"cached":0},"duration_ms":1900,"dropped":0}}
//! {"id":"r2","error":{"code":"bad_request","message":"the request is not usable: …"}}
//! ```
//!
//! - An answer is never empty, and holds no run of eight words that is in `messages`, in `avoid`,
//!   or earlier in the answer; case and punctuation do not count.
//! - From three quarters of `max_tokens` on it ends with the next sentence. `stop_reason` is
//!   `end`, or `max_tokens` where it had to be cut.
//! - The context has 8,192 tokens, or fewer if the model has fewer. If the turns do not fit, the
//!   oldest ones after the system message are left out and counted in `dropped`; if the system
//!   message and the newest turn alone do not fit, the answer is the error `too_long`.
//! - What was read of a `conversation` is kept for its next request, as far as both begin alike;
//!   `cached` counts the tokens that were not read again. Four conversations are kept, of each at
//!   most 2,048 tokens (94 MB). It counts in blocks of 32
//!   tokens. What is kept changes the time an answer takes, never its words.
//! - The process needs `CANDLE_NUM_THREADS=1` from whoever starts it, or it is slow on a busy machine.
//! - A line that is no request is answered with an error and the loop goes on. The end of the
//!   input ends it.

mod answer;
mod cache;
mod conversations;
mod error;
mod gguf;
mod llama;
mod model;
mod prompt;
mod protocol;
mod sampler;
mod serve;
mod tokenizer;
mod words;
mod writer;

pub use error::Error;
pub use protocol::{
    Done, Event, Failure, Message, Ready, Request, Role, Sampling, StopReason, Usage,
};
pub use serve::serve;
