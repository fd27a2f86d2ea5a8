//! A chat and its echo: two small machines over a journal in memory.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ksi_state::{
    AppendError, By, Changed, Committed, Fact, Facts, Fault, Journal, Machine, Millis, Out,
    PluginId, Query, Refused, Replica, Sequencer, Sink, Stamp, State, Want,
    testing::memory::MemoryJournal,
};
use serde::{Deserialize, Serialize, Serializer, ser::Error as _};

pub(crate) const CHAT: PluginId = PluginId(0);
pub(crate) const ECHO: PluginId = PluginId(1);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) by: String,
    pub(crate) text: String,
}

impl Fact for Said {
    const NAME: &'static str = "chat:said";
    fn subject(&self) -> Cow<'_, str> {
        (&self.by).into()
    }
}

/// The same fact as a newer program writes it.
#[derive(Serialize, Deserialize)]
pub(crate) struct SaidLater {
    pub(crate) by: String,
    pub(crate) text: String,
}

impl Fact for SaidLater {
    const NAME: &'static str = "chat:said";
    const VERSION: u16 = 2;
    fn subject(&self) -> Cow<'_, str> {
        (&self.by).into()
    }
}

/// Something that JSON cannot hold.
#[derive(Deserialize)]
pub(crate) struct Unspeakable;

impl Serialize for Unspeakable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("there are no words"))
    }
}

impl Fact for Unspeakable {
    const NAME: &'static str = "chat:unspeakable";
    fn subject(&self) -> Cow<'_, str> {
        "nobody".into()
    }
}

/// What was said, in order, and by how many.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Chat {
    pub(crate) texts: Vec<String>,
    pub(crate) spoke: BTreeMap<String, u64>,
}

impl Chat {
    pub(crate) fn said(&mut self, said: &Said, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
        self.texts.push(said.text.clone());
        *self.spoke.entry(said.by.clone()).or_default() += 1;
        Ok(())
    }

    /// Each who spoke wants an answer, as many times as they spoke.
    pub(crate) fn wanted(&self, changed: Changed<'_>) -> Vec<Want<String>> {
        let (at, keys) = match changed {
            Changed::All => (Millis(0), self.spoke.keys().collect::<Vec<_>>()),
            Changed::Keys(keys) => (Millis(0), keys.iter().collect()),
        };
        keys.into_iter()
            .filter_map(|key| {
                let epoch = *self.spoke.get(key)?;
                Some(Want::Run { key: key.clone(), epoch, at, effect: format!("answer {key}") })
            })
            .collect()
    }
}

/// Another plugin that hears the chat, and cannot bear some words.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Echo(pub(crate) Vec<String>);

/// The chat's fact under a type of the echo's own: it knows only what it needs.
#[derive(Serialize, Deserialize)]
pub(crate) struct Heard {
    pub(crate) text: String,
}

impl Fact for Heard {
    const NAME: &'static str = "chat:said";
    fn subject(&self) -> Cow<'_, str> {
        "heard".into()
    }
}

impl Echo {
    pub(crate) fn heard(&mut self, heard: &Heard, _: &Stamp, _: &mut Out) -> Result<(), Fault> {
        match heard.text.as_str() {
            "fail" => Err(Fault("cannot bear it".into())),
            "panic" => panic!("cannot stand it"),
            text => {
                self.0.push(text.to_owned());
                Ok(())
            }
        }
    }

    pub(crate) fn wanted(&self, _: Changed<'_>) -> Vec<Want<u8>> {
        assert!(self.0.iter().all(|text| text != "panic later"), "cannot want it");
        vec![Want::Run { key: "echo".into(), epoch: 1, at: Millis(0), effect: 1 }]
    }
}

pub(crate) fn machines() -> Vec<Machine> {
    let mut chat = Machine::new::<Chat>("chat");
    chat.fold(Chat::said);
    chat.drive(Chat::wanted);
    let mut echo = Machine::new::<Echo>("echo");
    echo.fold(Echo::heard);
    echo.drive(Echo::wanted);
    vec![chat, echo]
}

/// A sequencer, its journal, and what the writer has passed on.
pub(crate) struct Bench {
    pub(crate) journal: MemoryJournal,
    pub(crate) sequencer: Sequencer,
    pub(crate) news: Mutex<Vec<Committed>>,
}

/// What became of one decision.
pub(crate) type Promise = Arc<Mutex<Option<Result<(), Refused>>>>;

impl Bench {
    pub(crate) fn new() -> Self {
        Self::over(MemoryJournal::default())
    }

    pub(crate) fn over(journal: MemoryJournal) -> Self {
        let (sequencer, _) =
            Sequencer::open(Replica::new(machines()), Arc::new(journal.clone())).unwrap();
        sequencer.try_commit(&|_| ());
        Bench { journal, sequencer, news: Mutex::default() }
    }

    pub(crate) fn decide<S: State, R>(
        &self,
        plugin: PluginId,
        by: &By,
        now: u64,
        decide: impl FnOnce(&S, Millis) -> (Facts, R),
    ) -> (Result<R, Refused>, Promise) {
        let promise = Promise::default();
        let kept = promise.clone();
        let done = Box::new(move |result| *kept.lock().unwrap() = Some(result));
        (self.sequencer.decide(plugin, by, Millis(now), decide, done), promise)
    }

    pub(crate) fn say(&self, by: &str, text: &str) -> Promise {
        let facts = Facts::one(said(by, text));
        let (reply, promise) = self.decide(CHAT, &By::default(), 5, |_: &Chat, _| (facts, ()));
        reply.unwrap();
        promise
    }

    pub(crate) fn commit(&self) {
        self.sequencer.try_commit(&telling(&|news| self.news.lock().unwrap().push(news)));
    }

    pub(crate) fn chat(&self) -> Chat {
        self.sequencer.peek(CHAT, Chat::clone).unwrap()
    }

    pub(crate) fn echo(&self) -> Echo {
        self.sequencer.peek(ECHO, Echo::clone).unwrap()
    }

    pub(crate) fn written(&self) -> Vec<String> {
        let records = self.journal.read(&Query::default()).unwrap();
        records.iter().map(|r| serde_json::from_str::<Said>(r.data.get()).unwrap().text).collect()
    }

    pub(crate) fn wants(&self) -> Vec<(usize, String, u64)> {
        let wants = self.sequencer.wants().into_iter();
        wants.map(|((plugin, key), epoch)| (plugin.0, key, epoch)).collect()
    }

    /// The keys of the last batch's wants, as `run KEY` and `stop KEY`.
    pub(crate) fn last_wants(&self) -> Vec<String> {
        let news = self.news.lock().unwrap();
        let wants = match news.last() {
            Some(Committed::Batch(batch)) => &batch.wants,
            Some(Committed::Full(wants)) => wants,
            _ => panic!("neither a batch nor a rebuild"),
        };
        let shown = |want: &Want<_>| match want {
            Want::Run { key, .. } => format!("run {key}"),
            Want::Stop { key } => format!("stop {key}"),
        };
        wants.iter().map(|(_, want)| shown(want)).collect()
    }
}

/// Tells those who wait, and passes on what else there is.
pub(crate) fn telling(pass_on: Sink<'_>) -> impl Fn(Committed) {
    move |news| match news {
        Committed::Settled(dones, result) => {
            dones.into_iter().for_each(|done| done(result.clone()))
        }
        news => pass_on(news),
    }
}

pub(crate) fn said(by: &str, text: &str) -> Said {
    Said { by: by.into(), text: text.into() }
}

pub(crate) fn full() -> AppendError {
    AppendError::Full("the disk is full".into())
}

pub(crate) fn state(promise: &Promise) -> Option<Result<(), Refused>> {
    promise.lock().unwrap().clone()
}

pub(crate) fn is_lost(promise: &Promise) -> bool {
    matches!(state(promise), Some(Err(_)))
}
