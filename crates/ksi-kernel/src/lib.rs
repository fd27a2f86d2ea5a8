//! What you need to extend KSI: plugin, router, ring, tasks, clock.
//!
//! # Writing a plugin
//!
//! A plugin is a value: a name and a table. The table says which requests it answers, how facts
//! change its state, what that state wants to run, and which news it watches. This one keeps
//! reminders:
//!
//! ```
//! use std::{borrow::Cow, collections::BTreeMap, sync::Arc};
//!
//! use ksi_kernel::{
//!     Changed, Ctx, Event, Fact, Facts, Fault, Millis, Out, Plugin, Result, Stamp, Want,
//! };
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//! # use ksi_kernel::{Caller, Clock, Kernel, News, Pattern, Setup};
//! # use serde_json::value::to_raw_value;
//!
//! /// Reminders: a text, and when to say it.
//! fn plugin() -> Plugin<Reminders> {
//!     Plugin::new("reminder")
//!         .on("reminder:add", add)
//!         .fact::<ReminderAdded>()
//!         .fact::<ReminderRang>()
//!         .fold(Reminders::added)
//!         .fold(Reminders::rang)
//!         .drive(Reminders::wanted, ring)
//!         .watch("reminder:rang", note)
//! }
//!
//! /// What has not rung yet. Only folds change it.
//! #[derive(Default, Serialize, Deserialize)]
//! struct Reminders {
//!     open: BTreeMap<String, Millis>,
//! }
//!
//! /// Add a reminder
//! #[derive(Deserialize, Serialize, JsonSchema)]
//! struct Add {
//!     text: String,
//!     in_ms: u64,
//! }
//!
//! /// A reminder was added.
//! #[derive(Serialize, Deserialize, JsonSchema)]
//! struct ReminderAdded {
//!     text: String,
//!     at_ms: u64,
//! }
//!
//! impl Fact for ReminderAdded {
//!     const NAME: &'static str = "reminder:added";
//!     fn subject(&self) -> Cow<'_, str> {
//!         (&self.text).into()
//!     }
//! }
//!
//! /// A reminder rang.
//! #[derive(Serialize, Deserialize, JsonSchema)]
//! struct ReminderRang {
//!     text: String,
//! }
//!
//! impl Fact for ReminderRang {
//!     const NAME: &'static str = "reminder:rang";
//!     fn subject(&self) -> Cow<'_, str> {
//!         (&self.text).into()
//!     }
//! }
//!
//! // 1. A handler answers a request. It looks at the state and decides which facts happen. Times
//! //    and ids are chosen here. `decide` returns when the facts are safe from a crash.
//! async fn add(cx: Ctx<Reminders>, req: Add) -> Result<u64> {
//!     cx.decide(|_reminders, now| {
//!         let at = now.plus(req.in_ms);
//!         Ok((Facts::one(ReminderAdded { text: req.text, at_ms: at.0 }), at.0))
//!     })
//!     .await
//! }
//!
//! impl Reminders {
//!     // 2. A fold changes the state. It runs for every new fact, and for every old one when the
//!     //    daemon starts. So it must be pure: no clock, no chance, no world.
//!     fn added(&mut self, fact: &ReminderAdded, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
//!         self.open.insert(fact.text.clone(), Millis(fact.at_ms));
//!         Ok(())
//!     }
//!
//!     fn rang(&mut self, fact: &ReminderRang, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
//!         self.open.remove(&fact.text);
//!         Ok(())
//!     }
//!
//!     // 3. `drive` says what should run, for the keys that changed or for all. It is pure too.
//!     //    The kernel starts, stops and repeats what it wants, also after a crash.
//!     fn wanted(&self, changed: Changed<'_>) -> Vec<Want<()>> {
//!         let want = |text: &String| match self.open.get(text) {
//!             Some(at) => Want::Run { key: text.clone(), epoch: 1, at: *at, effect: () },
//!             None => Want::Stop { key: text.clone() },
//!         };
//!         match changed {
//!             Changed::All => self.open.keys().map(want).collect(),
//!             Changed::Keys(keys) => keys.iter().map(want).collect(),
//!         }
//!     }
//! }
//!
//! // 4. An effect works in the world, and reports by deciding. Its report ends it, because then
//! //    the state wants it no more. If it ends without a report, it runs again after a pause.
//! async fn ring(cx: Ctx<Reminders>, text: String, _epoch: u64, _effect: ()) -> Result<()> {
//!     cx.signal("reminder:ringing", &text);
//!     cx.decide(|_reminders, _now| Ok((Facts::one(ReminderRang { text }), ()))).await
//! }
//!
//! // 5. A watcher hears news, as far as it keeps up. It must not be needed for what is true.
//! async fn note(cx: Ctx<Reminders>, event: Arc<Event>) {
//!     let open = cx.peek(|reminders| reminders.open.len());
//!     println!("{} rang at {}, {open:?} are left", event.data(), event.at().0);
//! }
//!
//! # use ksi_state::testing::memory::MemoryJournal;
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let clock = Clock::manual(Millis(1_000));
//!     let kernel = Kernel::start(Setup {
//!         plugins: vec![plugin().into()],
//!         journal: Arc::new(MemoryJournal::default()),
//!         clock: clock.clone(),
//!         snapshot_every: 10_000,
//!     })?;
//!     let mut listener = kernel.listener();
//!     listener.inbox().subscribe(vec![Pattern::parse("reminder:rang")?], None);
//!
//!     let tea = to_raw_value(&Add { text: "tea".into(), in_ms: 500 })?;
//!     let reply = kernel.call(Caller::operator(), "reminder:add", tea).await?;
//!     assert_eq!(reply.get(), "1500");
//!
//!     clock.advance(500);
//!     let Some(News::Event(event, _)) = listener.next().await else { panic!("it did not ring") };
//!     assert_eq!(event.data().get(), r#"{"text":"tea"}"#);
//!     kernel.shutdown(std::time::Duration::from_secs(1)).await;
//!     Ok(())
//! }
//! ```
//!
//! # What else a plugin can do
//!
//! - **Read**: [`Ctx::read`] waits until what it saw is on disk. [`Ctx::peek`] does not wait; it
//!   is for health and metrics.
//! - **Ask another plugin**: [`Ctx::call`] sends a request as the original caller, and guards are
//!   asked again. Or fold the other plugin's fact: declare a type with the same name and the
//!   fields you need.
//! - **Accept now, finish later**: subscribe with [`Ctx::listen`], decide, then wait with
//!   [`Listener::until`] for the fact that an effect brings.
//! - **Touch other keys**: when a fact about one key changes what another should do, the fold
//!   says so through [`Out`]. A test that replays many seeds finds what was forgotten.
//! - **Fail**: a handler or a watcher may panic; the daemon goes on. A fold that fails degrades
//!   its own plugin only.
//!
//! # Only folds change state
//!
//! A decision sees the state and cannot change it:
//!
//! ```
//! # use ksi_kernel::{Ctx, Facts, Result};
//! # #[derive(Default, serde::Serialize, serde::Deserialize)]
//! # struct Counter { count: u64 }
//! async fn handler(cx: Ctx<Counter>) -> Result<u64> {
//!     cx.decide(|counter, _now| {
//!         let count = counter.count + 1;
//!         Ok((Facts::none(), count))
//!     })
//!     .await
//! }
//! ```
//!
//! ```compile_fail,E0594
//! # use ksi_kernel::{Ctx, Facts, Result};
//! # #[derive(Default, serde::Serialize, serde::Deserialize)]
//! # struct Counter { count: u64 }
//! async fn handler(cx: Ctx<Counter>) -> Result<u64> {
//!     cx.decide(|counter, _now| {
//!         let count = { counter.count += 1; counter.count };
//!         Ok((Facts::none(), count))
//!     })
//!     .await
//! }
//! ```
//!
//! Nor can `drive`:
//!
//! ```
//! # use ksi_kernel::{Changed, Ctx, Plugin, Result, Want};
//! # async fn perform(_: Ctx<Vec<u8>>, _: String, _: u64, _: ()) -> Result<()> { Ok(()) }
//! fn wanted(list: &Vec<u8>, _: Changed<'_>) -> Vec<Want<()>> {
//!     let _ = list.len();
//!     Vec::new()
//! }
//! let plugin = Plugin::<Vec<u8>>::new("list").drive(wanted, perform);
//! ```
//!
//! ```compile_fail,E0596
//! # use ksi_kernel::{Changed, Ctx, Plugin, Result, Want};
//! # async fn perform(_: Ctx<Vec<u8>>, _: String, _: u64, _: ()) -> Result<()> { Ok(()) }
//! fn wanted(list: &Vec<u8>, _: Changed<'_>) -> Vec<Want<()>> {
//!     let _ = list.push(1);
//!     Vec::new()
//! }
//! let plugin = Plugin::<Vec<u8>>::new("list").drive(wanted, perform);
//! ```
//!
//! # Reading this crate
//!
//! In this order: `plugin`, the table; `ctx`, what a handler may do; `router`, from a name to its
//! owner; `kernel`, start, commit and shutdown. Below lie `ksi_runtime`, what runs and when;
//! `ksi_ring`, how news travel; and `ksi_state`, what keeps state true.

mod ctx;
mod kernel;
mod plugin;
mod router;

pub use ctx::Ctx;
pub use kernel::{Kernel, Setup, StartError};
pub use ksi_protocol::{Code, Error, EventDoc, Kind, Pattern, Raw, Result};
pub use ksi_ring::{Act, Because, Call, Caller, Event, Inbox, Listener, News, Reply};
pub use ksi_runtime::{BoxFuture, Clock, EffectFailed, Tasks};
pub use ksi_state::{
    Changed, Document, Fact, Facts, Fault, Journal, Millis, Origin, Out, Query, Record, Select,
    Seq, Stamp, Want,
};
pub use plugin::{AnyPlugin, Plugin};
pub use router::Answer;
