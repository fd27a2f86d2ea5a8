use std::collections::BTreeMap;

use super::*;
use crate::world::Dice;

const PLUGIN: PluginId = PluginId(0);

fn place(key: &str) -> Place {
    (PLUGIN, key.to_owned())
}

fn effect(name: &'static str) -> AnyEffect {
    let want = Want::Run { key: String::new(), epoch: 0, at: Millis(0), effect: name }.erase();
    let Want::Run { effect, .. } = want else { unreachable!("it is a run") };
    effect
}

fn run(key: &str, epoch: u64, at: u64) -> (PluginId, Want<AnyEffect>) {
    let effect = effect("work");
    (PLUGIN, Want::Run { key: key.to_owned(), epoch, at: Millis(at), effect })
}

fn stop(key: &str) -> (PluginId, Want<AnyEffect>) {
    (PLUGIN, Want::Stop { key: key.to_owned() })
}

fn start_of(key: &str, epoch: u64) -> Action {
    Action::Start { place: place(key), epoch, effect: effect("work") }
}

fn stop_of(key: &str) -> Action {
    Action::Stop(place(key))
}

#[test]
fn what_is_wanted_now_starts_at_once_and_only_once() {
    let mut runs = Runs::default();
    let wants = vec![run("a", 1, 5), run("a", 1, 5)];
    assert_eq!(runs.apply(wants, Millis(5)), [start_of("a", 1)]);
    assert_eq!(runs.apply(vec![run("a", 1, 5)], Millis(9)), []);
}

#[test]
fn one_key_of_two_plugins_is_two_runs() {
    let mut runs = Runs::default();
    let mut other = run("a", 1, 0);
    other.0 = PluginId(1);
    assert_eq!(runs.apply(vec![run("a", 1, 0), other], Millis(0)).len(), 2);
}

#[test]
fn what_is_wanted_later_starts_when_it_is_due_and_in_the_order_of_time() {
    let mut runs = Runs::default();
    let wants = vec![run("late", 1, 30), run("early", 1, 20), run("never", 1, 99)];
    assert_eq!(runs.apply(wants, Millis(10)), []);
    assert_eq!(runs.next_due(), Some(Millis(20)));
    assert_eq!(runs.due(Millis(19)), []);
    assert_eq!(runs.due(Millis(30)), [start_of("early", 1), start_of("late", 1)]);
    assert_eq!(runs.next_due(), Some(Millis(99)));
}

#[test]
fn a_newer_epoch_starts_only_when_the_older_run_has_ended() {
    let mut runs = Runs::default();
    runs.apply(vec![run("a", 1, 0)], Millis(0));
    assert_eq!(runs.apply(vec![run("a", 2, 0)], Millis(1)), [stop_of("a")]);
    assert_eq!(runs.apply(vec![run("a", 3, 0)], Millis(2)), [], "it is stopped once");
    assert_eq!(runs.ended(&place("a"), Millis(3)), (Ended::Done, vec![start_of("a", 3)]));
}

#[test]
fn what_is_stopped_and_wanted_again_restarts_after_its_end() {
    let mut runs = Runs::default();
    runs.apply(vec![run("a", 1, 0)], Millis(0));
    assert_eq!(runs.apply(vec![stop("a"), run("a", 1, 0)], Millis(1)), [stop_of("a")]);
    assert_eq!(runs.ended(&place("a"), Millis(2)), (Ended::Done, vec![start_of("a", 1)]));
}

#[test]
fn what_is_told_to_stop_is_due_only_if_the_next_is_to_start_behind_it() {
    let mut runs = Runs::default();
    runs.apply(vec![run("a", 1, 0)], Millis(1));
    assert!(runs.is_due(&place("a"), Millis(1)));
    runs.apply(vec![run("a", 2, 0)], Millis(1));
    assert!(runs.is_due(&place("a"), Millis(1)));
    runs.apply(vec![run("a", 3, 9)], Millis(1));
    assert!(!runs.is_due(&place("a"), Millis(8)) && runs.is_due(&place("a"), Millis(9)));
    runs.apply(vec![stop("a")], Millis(1));
    assert!(!runs.is_due(&place("a"), Millis(9)));
}

#[test]
fn a_run_that_is_no_longer_wanted_ends_for_good() {
    let mut runs = Runs::default();
    runs.apply(vec![run("a", 1, 0), run("b", 1, 50)], Millis(0));
    assert_eq!(runs.apply(vec![stop("a"), stop("b")], Millis(1)), [stop_of("a")]);
    assert_eq!(runs.ended(&place("a"), Millis(2)), (Ended::Done, vec![]));
    assert_eq!((runs.next_due(), runs.wanted()), (None, vec![]));
}

#[test]
fn a_stop_of_nothing_is_no_news() {
    let mut runs = Runs::default();
    assert_eq!(runs.apply(vec![stop("a")], Millis(0)), []);
    assert_eq!(runs.ended(&place("a"), Millis(0)), (Ended::Done, vec![]));
}

#[test]
fn pauses_after_failures_double_from_half_a_second_to_a_minute() {
    let mut runs = Runs::default();
    runs.apply(vec![run("a", 1, 0)], Millis(0));
    let mut now = Millis(0);
    let pauses: Vec<u64> = (1..=20)
        .map(|nth| {
            let (ended, actions) = runs.ended(&place("a"), now);
            let Ended::Again { failures, at } = ended else { panic!("it is still wanted") };
            assert_eq!((failures, actions), (nth, vec![]));
            assert_eq!(runs.due(Millis(at.0 - 1)), [], "before its time");
            assert_eq!(runs.due(at), [start_of("a", 1)]);
            let pause = at.0 - now.0;
            now = at;
            pause
        })
        .collect();
    assert_eq!(pauses[..8], [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000]);
    assert!(pauses[8..].iter().all(|pause| *pause == 60_000), "{pauses:?}");
}

#[test]
fn the_same_want_again_does_not_cut_a_pause_short_and_a_newer_epoch_does() {
    let mut runs = Runs::default();
    runs.apply(vec![run("a", 1, 0)], Millis(0));
    runs.ended(&place("a"), Millis(0));
    assert_eq!(runs.apply(vec![run("a", 1, 0)], Millis(1)), []);
    assert_eq!(runs.apply(vec![run("a", 2, 0)], Millis(2)), [start_of("a", 2)]);
    let (ended, _) = runs.ended(&place("a"), Millis(3));
    assert_eq!(ended, Ended::Again { failures: 1, at: Millis(503) }, "a new attempt counts anew");
}

#[test]
fn a_complete_set_stops_what_is_not_in_it_and_leaves_the_rest_alone() {
    let mut runs = Runs::default();
    runs.apply(vec![run("kept", 1, 0), run("gone", 1, 0), run("armed", 1, 50)], Millis(0));
    let actions = runs.replace(vec![run("kept", 1, 0), run("new", 1, 0)], Millis(1));
    assert_eq!(actions, [stop_of("gone"), start_of("new", 1)]);
    assert_eq!(runs.next_due(), None, "what was armed is forgotten");
    assert_eq!(runs.replace(vec![], Millis(2)), [stop_of("kept"), stop_of("new")]);
}

/// The rule of [`Runs`] in the plainest words: what is wanted, what runs, and when it may start.
#[derive(Default)]
struct Model {
    wants: BTreeMap<String, (u64, u64)>,
    /// Epoch, and whether it has been told to stop.
    running: BTreeMap<String, (u64, bool)>,
    /// When the next start may be, and failures in a row.
    pauses: BTreeMap<String, u64>,
    failures: BTreeMap<String, u32>,
}

impl Model {
    fn want(&mut self, key: &str, wanted: Option<(u64, u64)>) {
        let before = self.wants.get(key).copied();
        if before == wanted {
            return;
        }
        self.pauses.remove(key);
        if before.map(|(epoch, _)| epoch) != wanted.map(|(epoch, _)| epoch) {
            self.failures.remove(key);
        }
        match wanted {
            Some(wanted) => self.wants.insert(key.to_owned(), wanted),
            None => self.wants.remove(key),
        };
        if let Some((epoch, stopped)) = self.running.get_mut(key) {
            *stopped |= wanted.is_none_or(|(wanted, _)| wanted != *epoch);
        }
    }

    fn ended(&mut self, key: &str, now: u64) -> Option<u32> {
        let (_, stopped) = self.running.remove(key).expect("it runs");
        if stopped || !self.wants.contains_key(key) {
            return None;
        }
        let failures = self.failures.entry(key.to_owned()).or_default();
        *failures += 1;
        let pause = (500u64 << (*failures - 1).min(16)).min(60_000);
        self.pauses.insert(key.to_owned(), now + pause);
        Some(*failures)
    }

    fn due(&self, key: &str) -> Option<u64> {
        let (_, at) = self.wants.get(key)?;
        let idle = !self.running.contains_key(key);
        idle.then(|| self.pauses.get(key).copied().unwrap_or(*at))
    }

    /// Takes note of the actions, each of which must be right at this moment.
    fn act(&mut self, actions: &[Action], now: u64, seed: u64) {
        for action in actions {
            match action {
                Action::Start { place: (_, key), epoch, .. } => {
                    let due = self.due(key).unwrap_or_else(|| panic!("seed {seed}: {action:?}"));
                    assert!(due <= now, "seed {seed}: {key} starts at {now}, due at {due}");
                    assert_eq!(self.wants[key].0, *epoch, "seed {seed}: another epoch of {key}");
                    self.running.insert(key.clone(), (*epoch, false));
                }
                Action::Stop((_, key)) => {
                    assert!(self.running[key].1, "seed {seed}: {key} is stopped though wanted");
                }
            }
        }
    }
}

#[test]
fn random_wants_and_ends_agree_with_a_naive_model() {
    let (mut starts, mut stops, mut failures) = (0, 0, 0);
    for seed in 0..1_000 {
        let (mut runs, mut model, mut dice) = (Runs::default(), Model::default(), Dice::new(seed));
        let mut now = 1_000;
        for _ in 0..60 {
            let key = ["a", "b", "c"][dice.below(3) as usize];
            let actions = match dice.below(10) {
                0..4 => {
                    let want = random_want(&mut model, key, now, &mut dice);
                    runs.apply(vec![want], Millis(now))
                }
                4 => random_set(&mut runs, &mut model, now, &mut dice),
                5..8 if model.running.contains_key(key) => {
                    let expected = model.ended(key, now);
                    let (ended, actions) = runs.ended(&place(key), Millis(now));
                    let found = match ended {
                        Ended::Again { failures, .. } => Some(failures),
                        Ended::Done => None,
                    };
                    assert_eq!(found, expected, "seed {seed}: how {key} ended");
                    failures += usize::from(found.is_some());
                    actions
                }
                _ => {
                    now += dice.below(1_500);
                    runs.due(Millis(now))
                }
            };
            starts += actions.iter().filter(|a| matches!(a, Action::Start { .. })).count();
            stops += actions.iter().filter(|a| matches!(a, Action::Stop(_))).count();
            model.act(&actions, now, seed);
            // What stays idle is exactly what is not due yet.
            let more = runs.due(Millis(now));
            model.act(&more, now, seed);
            let due = ["a", "b", "c"].into_iter().filter_map(|key| model.due(key)).min();
            assert_eq!(runs.next_due(), due.map(Millis), "seed {seed}: what is due next");
            assert!(due.is_none_or(|due| due > now), "seed {seed}: due and not started");
        }
    }
    assert!(starts > 5_000 && stops > 1_000 && failures > 1_000, "{starts} {stops} {failures}");
}

fn random_want(
    model: &mut Model,
    key: &str,
    now: u64,
    dice: &mut Dice,
) -> (PluginId, Want<AnyEffect>) {
    if dice.percent(30) {
        model.want(key, None);
        return stop(key);
    }
    let (epoch, at) = (1 + dice.below(3), now.saturating_sub(500) + dice.below(2_000));
    let (epoch, at) = match model.wants.get(key) {
        Some(same) if dice.percent(30) => *same,
        _ => (epoch, at),
    };
    model.want(key, Some((epoch, at)));
    run(key, epoch, at)
}

fn random_set(runs: &mut Runs, model: &mut Model, now: u64, dice: &mut Dice) -> Vec<Action> {
    let mut wants = Vec::new();
    for key in ["a", "b", "c"] {
        match dice.percent(50) {
            true => model.want(key, None),
            false => wants.push(random_want(model, key, now, dice)),
        }
    }
    runs.replace(wants, Millis(now))
}
