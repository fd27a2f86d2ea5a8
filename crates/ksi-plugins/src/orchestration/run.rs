//! The state: every orchestration, what was said in it, and what it wants next. All pure.

use std::{collections::BTreeMap, sync::Arc};

use ksi_kernel::{Changed, Error, Fault, Millis, Origin, Out, Result, Stamp, Want};
use serde::{Deserialize, Serialize};

use super::{
    facts::{EndRequested, Failed, Finished, Started, Terminated, Totals, TurnTaken, Usage},
    pattern::{Role, Scene, Unfillable},
};

/// Orchestrations, by id.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Orchestrations {
    /// Those under way, and those that ended before documents were kept.
    pub(super) runs: BTreeMap<String, Run>,
    /// Whether what ends goes into documents.
    #[serde(default)]
    pub(super) archives: bool,
    /// Callers' keys, for a week.
    #[serde(default)]
    pub(super) keys: BTreeMap<String, Known>,
}

/// What a caller's key stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) orchestration_id: String,
    at: Millis,
}

impl Known {
    /// What the key of this one stands for.
    pub(super) fn of(run: &Run) -> Self {
        Self { orchestration_id: run.started.orchestration_id.clone(), at: run.started_at }
    }
}

const WEEK_MS: u64 = 7 * 24 * 60 * 60 * 1_000;

/// One orchestration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) started: Started,
    pub(super) started_at: Millis,
    /// Who asked for it; its turns are taken on their behalf.
    pub(super) origin: Arc<Origin>,
    pub(super) turns: Vec<TurnTaken>,
    pub(super) phase: Phase,
}

/// How far an orchestration is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Phase {
    Running,
    /// Somebody asked for its end.
    Ending {
        reason: Option<String>,
    },
    Finished(Totals),
    Failed {
        error: String,
        hint: Option<String>,
        totals: Totals,
    },
    Terminated {
        reason: Option<String>,
        totals: Totals,
    },
}

/// What an orchestration wants to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Have the next speaker speak; the effect's epoch is the turn.
    Speak,
    /// Write the transcript and end it.
    Conclude,
}

/// What a turn asks of a model.
#[derive(Debug, Serialize)]
pub(super) struct Speech {
    pub(super) prompt: String,
    pub(super) instructions: String,
    pub(super) model: String,
    pub(super) conversation_id: String,
    pub(super) idempotency_key: String,
    pub(super) max_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seed: Option<u64>,
    /// What was said before, which the model should not say again.
    pub(super) avoid_repeats: Vec<String>,
    pub(super) metadata: About,
}

/// Which turn a completion is for.
#[derive(Debug, Serialize)]
pub(super) struct About {
    pub(super) orchestration_id: String,
    pub(super) turn: u32,
    pub(super) round: u32,
    pub(super) speaker: String,
}

impl Orchestrations {
    /// One that the state holds.
    pub(super) fn run(&self, id: &str) -> Result<&Run> {
        self.runs.get(id).ok_or_else(|| missing(id))
    }

    /// The one that was started with this key.
    pub(super) fn of_key(&self, key: &str, now: Millis) -> Option<&str> {
        let known = self.keys.get(key).filter(|known| now < known.at.plus(WEEK_MS))?;
        Some(&known.orchestration_id)
    }

    pub(super) fn change(&mut self, id: &str) -> Result<&mut Run, Fault> {
        self.runs.get_mut(id).ok_or_else(|| Fault(format!("`{id}` was never started")))
    }

    pub(super) fn started(&mut self, fact: &Started, stamp: &Stamp, out: &mut Out) -> Folded {
        if fact.archives {
            self.begin_archive(out);
        }
        self.keys.retain(|_, known| stamp.at < known.at.plus(WEEK_MS));
        if let Some(key) = &fact.idempotency_key {
            let orchestration_id = fact.orchestration_id.clone();
            self.keys.insert(key.clone(), Known { orchestration_id, at: stamp.at });
        }
        let run = Run {
            started: fact.clone(),
            started_at: stamp.at,
            origin: stamp.origin.clone(),
            turns: Vec::new(),
            phase: Phase::Running,
        };
        self.runs.insert(fact.orchestration_id.clone(), run);
        Ok(())
    }

    pub(super) fn turn_taken(&mut self, fact: &TurnTaken, _: &Stamp, _: &mut Out) -> Folded {
        self.change(&fact.orchestration_id)?.turns.push(fact.clone());
        Ok(())
    }

    pub(super) fn end_requested(&mut self, fact: &EndRequested, _: &Stamp, _: &mut Out) -> Folded {
        self.change(&fact.orchestration_id)?.phase = Phase::Ending { reason: fact.reason.clone() };
        Ok(())
    }

    pub(super) fn finished(&mut self, fact: &Finished, _: &Stamp, out: &mut Out) -> Folded {
        self.end(&fact.orchestration_id, Phase::Finished(fact.totals.clone()), out)
    }

    pub(super) fn failed(&mut self, fact: &Failed, _: &Stamp, out: &mut Out) -> Folded {
        let Failed { error, hint, totals, .. } = fact.clone();
        self.end(&fact.orchestration_id, Phase::Failed { error, hint, totals }, out)
    }

    pub(super) fn terminated(&mut self, fact: &Terminated, _: &Stamp, out: &mut Out) -> Folded {
        let Terminated { reason, totals, .. } = fact.clone();
        self.end(&fact.orchestration_id, Phase::Terminated { reason, totals }, out)
    }

    /// What should run: the next turn, or the end.
    pub(super) fn wanted(&self, changed: Changed<'_>) -> Vec<Want<Task>> {
        match changed {
            Changed::All => self.runs.iter().filter_map(|(id, run)| run.want(id)).collect(),
            Changed::Keys(keys) => {
                let want = |id: &String| self.runs.get(id).and_then(|run| run.want(id));
                keys.iter()
                    .map(|id| want(id).unwrap_or_else(|| Want::Stop { key: id.clone() }))
                    .collect()
            }
        }
    }
}

/// There is none of this id.
pub(super) fn missing(id: &str) -> Error {
    Error::not_found(format!("there is no orchestration `{id}`"))
        .hint("`orchestration:list` names those there are")
}

pub(super) type Folded = Result<(), Fault>;

impl From<Unfillable> for Error {
    fn from(error: Unfillable) -> Self {
        Error::bad_params(error.to_string()).hint(
            "mend this template, with fewer or shorter loops if it is too long; then start again",
        )
    }
}

impl Run {
    /// The turn that is next, from 1; the number of all turns and one when there is none.
    pub(super) fn next_turn(&self) -> u32 {
        self.turns.len() as u32 + 1
    }

    fn want(&self, id: &str) -> Option<Want<Task>> {
        let (next, all) = (self.next_turn(), self.started.definition.turns());
        // The last epoch is the end's alone: it must replace the turn that runs.
        let (epoch, effect) = match &self.phase {
            Phase::Running if next <= all => (next, Task::Speak),
            Phase::Running | Phase::Ending { .. } => (all + 1, Task::Conclude),
            Phase::Finished(_) | Phase::Failed { .. } | Phase::Terminated { .. } => return None,
        };
        Some(Want::Run { key: id.to_owned(), epoch: epoch.into(), at: Millis(0), effect })
    }

    /// Who speaks next.
    pub(super) fn speaker(&self) -> &Role {
        self.started.definition.speaker(self.next_turn())
    }

    /// What the next turn asks of the model.
    pub(super) fn speech(&self) -> Result<Speech> {
        let Started { orchestration_id: id, definition, vars, model, .. } = &self.started;
        let turn = self.next_turn();
        let speaker = self.speaker().name.clone();
        let said = self.turns.last().map(|turn| turn.text.as_str());
        let scene = Scene { vars, turn, said };
        Ok(Speech {
            prompt: definition.prompt(scene)?,
            instructions: definition.instructions(scene)?,
            model: model.clone(),
            conversation_id: format!("{id}/{speaker}"),
            idempotency_key: format!("{id}/{turn}"),
            max_tokens: definition.max_tokens,
            seed: definition.seed.map(|seed| seed.wrapping_add(u64::from(turn) - 1)),
            avoid_repeats: self.turns.iter().map(|turn| turn.text.clone()).collect(),
            metadata: About {
                orchestration_id: id.clone(),
                turn,
                round: definition.round(turn),
                speaker,
            },
        })
    }

    /// What came of it so far.
    pub(super) fn totals(&self, now: Millis, transcript: Option<String>) -> Totals {
        let mut usage = Usage::default();
        self.turns.iter().for_each(|turn| usage += turn.usage);
        Totals {
            turns: self.turns.len() as u32,
            usage,
            // A sum of nothing would be -0.
            cost_usd: self.turns.iter().fold(0.0, |sum, turn| sum + turn.cost_usd),
            duration_ms: now.0.saturating_sub(self.started_at.0),
            transcript,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ksi_kernel::Seq;
    use proptest::prelude::*;

    use super::{super::pattern::Pattern, *};

    fn run_of(turns: u32, phase: Phase) -> Run {
        let text = include_str!("../../patterns/debate.yaml");
        let started = Started {
            orchestration_id: "r1".into(),
            pattern: "debate".into(),
            definition: Pattern { seed: Some(7), ..Pattern::parse("debate.yaml", text).unwrap() },
            vars: BTreeMap::from([("topic".into(), "Is P=NP?".into())]),
            model: "scripted".into(),
            idempotency_key: None,
            archives: false,
        };
        let turns = (1..=turns).map(taken).collect();
        Run { started, started_at: Millis(1_000), origin: Arc::default(), turns, phase }
    }

    fn taken(turn: u32) -> TurnTaken {
        TurnTaken {
            orchestration_id: "r1".into(),
            turn,
            round: 1,
            speaker: "Ada".into(),
            text: format!("text {turn}"),
            request_id: format!("q{turn}"),
            usage: Usage { input: 10, output: 5, ..Usage::default() },
            cost_usd: 0.25,
            duration_ms: 3,
            model: "scripted".into(),
        }
    }

    fn task(run: &Run) -> Option<(u64, Task)> {
        match run.want("r1") {
            Some(Want::Run { epoch, effect, .. }) => Some((epoch, effect)),
            _ => None,
        }
    }

    #[test]
    fn each_turn_is_wanted_under_its_own_number_and_then_the_end() {
        let tasks: Vec<_> = (0..=4).map(|turns| task(&run_of(turns, Phase::Running))).collect();
        let speak = |turn| Some((turn, Task::Speak));
        assert_eq!(tasks, [speak(1), speak(2), speak(3), speak(4), Some((5, Task::Conclude))]);
    }

    #[test]
    fn a_requested_end_replaces_the_turn_that_runs() {
        for turns in 0..=4 {
            let run = run_of(turns, Phase::Ending { reason: None });
            assert_eq!(task(&run), Some((5, Task::Conclude)), "after {turns} turns");
        }
    }

    #[test]
    fn nothing_is_wanted_of_what_is_over() {
        assert_eq!(task(&run_of(4, Phase::Finished(Totals::default()))), None);
        let terminated = Phase::Terminated { reason: None, totals: Totals::default() };
        assert_eq!(task(&run_of(2, terminated)), None);
    }

    #[test]
    fn a_turn_asks_with_the_words_of_the_turn_before_it() {
        let speech = run_of(2, Phase::Running).speech().unwrap();
        assert!(speech.prompt.contains("text 2") && !speech.prompt.contains("text 1"));
        assert_eq!(speech.conversation_id, "r1/Ada");
        assert_eq!(speech.idempotency_key, "r1/3");
        assert_eq!(speech.seed, Some(9));
        assert_eq!(speech.avoid_repeats, ["text 1", "text 2"]);
        assert_eq!((speech.metadata.turn, speech.metadata.round), (3, 2));
    }

    #[test]
    fn totals_add_the_turns_up() {
        let totals = run_of(3, Phase::Running).totals(Millis(1_500), None);
        assert_eq!((totals.turns, totals.usage.input, totals.usage.output), (3, 30, 15));
        assert_eq!((totals.cost_usd, totals.duration_ms), (0.75, 500));
    }

    /// Folds one thing that may happen next; `kind` chooses among what the state allows.
    fn happen(state: &mut Orchestrations, id: &str, kind: u8) {
        let (stamp, out) =
            (Stamp { seq: Seq(1), at: Millis(5), origin: Arc::default() }, &mut Out::default());
        let orchestration_id = id.to_owned();
        let Some(run) = state.runs.get(id) else {
            let started = Started { orchestration_id, ..run_of(0, Phase::Running).started };
            return state.started(&started, &stamp, out).unwrap();
        };
        let totals = Totals::default();
        let (next, all) = (run.next_turn(), run.started.definition.turns());
        let folded = match (&run.phase, kind) {
            (Phase::Running, 0) => {
                state.end_requested(&EndRequested { orchestration_id, reason: None }, &stamp, out)
            }
            (Phase::Running, 1) => {
                let (error, code, hint) = ("no".into(), ksi_kernel::Code::ProviderError, None);
                state.failed(&Failed { orchestration_id, error, code, hint, totals }, &stamp, out)
            }
            (Phase::Running, _) if next <= all => {
                state.turn_taken(&TurnTaken { orchestration_id, ..taken(next) }, &stamp, out)
            }
            (Phase::Running, _) => {
                state.finished(&Finished { orchestration_id, totals }, &stamp, out)
            }
            (Phase::Ending { .. }, _) => {
                let reason = None;
                state.terminated(&Terminated { orchestration_id, reason, totals }, &stamp, out)
            }
            _ => Ok(()),
        };
        folded.unwrap();
    }

    proptest! {
        #[test]
        fn many_small_drives_end_where_one_full_drive_ends(
            story in proptest::collection::vec((0..4_u8, 0..12_u8), 0..60),
        ) {
            let mut state = Orchestrations::default();
            let mut wanted = BTreeMap::new();
            for (run, kind) in story {
                let id = format!("r{run}");
                happen(&mut state, &id, kind);
                for want in state.wanted(Changed::Keys(&BTreeSet::from([id]))) {
                    match want {
                        Want::Run { key, epoch, effect, .. } => wanted.insert(key, (epoch, effect)),
                        Want::Stop { key } => wanted.remove(&key),
                    };
                }
            }
            let all = state.wanted(Changed::All).into_iter().map(|want| match want {
                Want::Run { key, epoch, effect, .. } => (key, (epoch, effect)),
                Want::Stop { key } => panic!("a full drive stops nothing, but {key}"),
            });
            prop_assert_eq!(all.collect::<BTreeMap<_, _>>(), wanted);
        }
    }

    #[test]
    fn a_key_of_no_run_is_stopped() {
        let keys = BTreeSet::from(["gone".to_owned()]);
        let wants = Orchestrations::default().wanted(Changed::Keys(&keys));
        assert_eq!(wants, [Want::Stop { key: "gone".into() }]);
    }
}
