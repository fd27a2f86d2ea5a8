//! Patterns: who speaks, in which order, with which words around the model's own.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::template::{self, Unfilled};
use crate::library::from_yaml;

/// The rules of a conversation between agents, as read from a YAML file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pattern {
    /// One sentence.
    pub description: String,
    /// What must be given to start it: name and meaning.
    #[serde(default)]
    pub vars: BTreeMap<String, String>,
    /// Whose turn is next.
    #[serde(default)]
    pub order: Order,
    /// How often each speaks.
    pub rounds: u32,
    /// The longest turn, in tokens.
    pub max_tokens: u32,
    /// Where the sampling of the first turn starts, for models that allow it.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Who speaks.
    pub roles: Vec<Role>,
    /// What a speaker is asked.
    pub prompts: Prompts,
}

/// Whose turn is next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// One after the other, as listed.
    #[default]
    RoundRobin,
}

/// One speaker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// What it is told once, before all turns; a template.
    pub instructions: String,
}

/// What a speaker is asked; templates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// For the very first turn.
    pub opening: String,
    /// For every other turn.
    pub turn: String,
}

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file does not have the shape of a pattern.
    #[error("{file}, line {line}: {why}")]
    Shape {
        /// The file.
        file: String,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        why: String,
    },
    /// A value is not possible.
    #[error("{file}, `{field}`: {why}")]
    Value {
        /// The file.
        file: String,
        /// The field, as `roles[0].name`.
        field: String,
        /// What is wrong.
        why: String,
    },
}

/// A field of the pattern that gives no text.
#[derive(Debug, thiserror::Error)]
#[error("the pattern's `{field}` cannot be filled in: {why}")]
pub(super) struct Unfillable {
    pub(super) field: String,
    pub(super) why: Unfilled,
}

/// What a template may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) vars: &'a BTreeMap<String, String>,
    /// The turn, from 1.
    pub(super) turn: u32,
    /// What was said in the turn before.
    pub(super) said: Option<&'a str>,
}

const INSTRUCTIONS: &[&str] = &["speaker", "others"];
const OPENING: &[&str] = &["speaker", "others", "other", "round", "rounds", "turn"];
const TURN: &[&str] = &["speaker", "others", "other", "round", "rounds", "turn", "said"];
/// The greatest number of rounds.
pub(super) const MOST_ROUNDS: u32 = 100;

impl Pattern {
    /// Reads a pattern and checks all of it, templates included; `file` is for the errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, Error> {
        let shape = |(line, why)| Error::Shape { file: file.to_owned(), line, why };
        let pattern: Self = from_yaml(text).map_err(shape)?;
        match pattern.fault() {
            Some((field, why)) => Err(Error::Value { file: file.to_owned(), field, why }),
            None => Ok(pattern),
        }
    }

    /// The number of turns in all.
    pub fn turns(&self) -> u32 {
        self.rounds.saturating_mul(self.roles.len() as u32)
    }

    /// Whether somebody speaks, and not for ever.
    pub(super) fn rounds_are_possible(&self) -> bool {
        (1..=MOST_ROUNDS).contains(&self.rounds)
    }

    /// The names of those who speak.
    pub fn names(&self) -> Vec<String> {
        self.roles.iter().map(|role| role.name.clone()).collect()
    }

    /// Who speaks in this turn, counted from 1.
    pub(super) fn speaker(&self, turn: u32) -> &Role {
        &self.roles[self.place(turn)]
    }

    /// Where in the list stands who speaks in this turn.
    fn place(&self, turn: u32) -> usize {
        match self.order {
            Order::RoundRobin => (turn as usize - 1) % self.roles.len(),
        }
    }

    /// In which round a turn falls.
    pub(super) fn round(&self, turn: u32) -> u32 {
        (turn - 1) / self.roles.len() as u32 + 1
    }

    /// What the speaker of this turn is told before all turns.
    pub(super) fn instructions(&self, scene: Scene<'_>) -> Result<String, Unfillable> {
        let place = self.place(scene.turn);
        let filled = template::fill(&self.roles[place].instructions, self.values(scene));
        filled.map_err(|why| Unfillable { field: format!("roles[{place}].instructions"), why })
    }

    /// What the speaker of this turn is asked.
    pub(super) fn prompt(&self, scene: Scene<'_>) -> Result<String, Unfillable> {
        let (field, template) = match scene.said {
            None => ("prompts.opening", &self.prompts.opening),
            Some(_) => ("prompts.turn", &self.prompts.turn),
        };
        let filled = template::fill(template, self.values(scene));
        filled.map_err(|why| Unfillable { field: field.to_owned(), why })
    }

    /// Fills in what no turn can change: whether it can be is known before the first one.
    pub(super) fn rehearse(&self, vars: &BTreeMap<String, String>) -> Result<(), Unfillable> {
        let scene = |turn| Scene { vars, turn, said: None };
        self.prompt(scene(1))?;
        let each = 1..=self.roles.len() as u32;
        each.map(scene).try_for_each(|scene| self.instructions(scene).map(drop))
    }

    fn values(&self, Scene { vars, turn, said }: Scene<'_>) -> BTreeMap<String, Value> {
        let speaker = &self.speaker(turn).name;
        let others = self.roles.iter().map(|role| &role.name).filter(|name| *name != speaker);
        let other = if turn > 1 { turn - 1 } else { turn + 1 };
        let mut values: BTreeMap<_, _> =
            vars.iter().map(|(name, value)| (name.clone(), Value::from(value))).collect();
        let mut set = |name: &str, value: Value| values.insert(name.to_owned(), value);
        set("speaker", speaker.into());
        set("others", others.map(Value::from).collect());
        set("other", (&self.speaker(other).name).into());
        set("round", self.round(turn).into());
        set("rounds", self.rounds.into());
        set("turn", turn.into());
        if let Some(said) = said {
            set("said", said.trim().into());
        }
        values
    }

    /// The first field with an impossible value, and what is wrong with it.
    fn fault(&self) -> Option<(String, String)> {
        let fault = |field: &str, why: &str| Some((field.to_owned(), why.to_owned()));
        if !self.rounds_are_possible() {
            return fault("rounds", &format!("must be between 1 and {MOST_ROUNDS}"));
        }
        if self.max_tokens == 0 {
            return fault("max_tokens", "must be at least 1");
        }
        if self.roles.is_empty() {
            return fault("roles", "somebody must speak");
        }
        if let Some(name) = self.vars.keys().find(|name| TURN.contains(&name.as_str())) {
            return fault(&format!("vars.{name}"), "this name is taken by KSI itself");
        }
        self.role_fault().or_else(|| self.template_fault())
    }

    fn role_fault(&self) -> Option<(String, String)> {
        let mut names = BTreeSet::new();
        self.roles.iter().enumerate().find_map(|(place, role)| {
            let odd = |c: char| !(c.is_alphanumeric() || c == '-' || c == '_' || c == ' ');
            let why = match role.name.as_str() {
                name if name.trim() != name || name.is_empty() || name.contains(odd) => {
                    "a name is made of letters, digits, `-`, `_` and single spaces between them"
                }
                name if !names.insert(name) => "two roles have this name",
                _ => return None,
            };
            Some((format!("roles[{place}].name"), why.to_owned()))
        })
    }

    fn template_fault(&self) -> Option<(String, String)> {
        let roles = self.roles.iter().enumerate().map(|(place, role)| {
            (format!("roles[{place}].instructions"), &role.instructions, INSTRUCTIONS)
        });
        let prompts = [
            ("prompts.opening".to_owned(), &self.prompts.opening, OPENING),
            ("prompts.turn".to_owned(), &self.prompts.turn, TURN),
        ];
        roles.chain(prompts).find_map(|(field, template, allowed)| {
            Some((field, template::fault(template, allowed, &self.vars)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBATE: &str = include_str!("../../patterns/debate.yaml");

    fn debate() -> Pattern {
        Pattern::parse("debate.yaml", DEBATE).unwrap()
    }

    fn vars() -> BTreeMap<String, String> {
        BTreeMap::from([("topic".to_owned(), "Is tea better than coffee?".to_owned())])
    }

    fn error_of(text: &str) -> String {
        Pattern::parse("mine.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_debate_has_two_speakers_who_take_turns() {
        let debate = debate();
        let speakers: Vec<_> =
            (1..=debate.turns()).map(|turn| &debate.speaker(turn).name).collect();
        assert_eq!(speakers, ["Ada", "Kurt", "Ada", "Kurt"]);
        assert_eq!([1, 2, 3, 4].map(|turn| debate.round(turn)), [1, 1, 2, 2]);
        assert!(debate.max_tokens <= 120);
    }

    #[test]
    fn prompts_say_the_side_and_hold_the_others_words() {
        let (debate, vars) = (debate(), vars());
        let first = Scene { vars: &vars, turn: 1, said: None };
        let second = Scene { vars: &vars, turn: 2, said: Some("Tea is calm.\n") };
        for scene in [first, second] {
            assert!(debate.instructions(scene).unwrap().contains("short sentences"));
            assert!(debate.prompt(scene).unwrap().contains(&vars["topic"]));
        }
        assert!(debate.prompt(first).unwrap().contains("the answer is yes"));
        assert!(debate.prompt(second).unwrap().contains("the answer is no"));
        assert!(debate.prompt(second).unwrap().contains("Ada said: \"Tea is calm.\""));
    }

    #[test]
    fn an_unknown_field_is_named_with_file_and_line() {
        let text = DEBATE.replace("max_tokens: 120", "max_token: 120");
        let line = text.lines().position(|line| line.starts_with("max_token:")).unwrap() + 1;
        let error = error_of(&text);
        assert!(error.starts_with(&format!("mine.yaml, line {line}: ")), "{error}");
        assert!(error.contains("unknown field `max_token`"), "{error}");
    }

    #[test]
    fn an_unknown_field_of_a_role_is_named_too() {
        let error = error_of(&DEBATE.replacen("  - name: Ada", "  - nickname: Ada", 1));
        assert!(error.contains("unknown field `nickname`"), "{error}");
    }

    #[test]
    fn a_template_that_does_not_parse_is_refused_with_its_field() {
        let error = error_of(&DEBATE.replace("said: \"{{ said }}\"", "said: \"{{ said \""));
        assert!(
            error.starts_with("mine.yaml, `prompts.turn`: line 1 of the template: "),
            "{error}"
        );
    }

    #[test]
    fn a_template_may_only_use_what_it_is_given() {
        let error = error_of(&DEBATE.replace("Answer in two", "Answer {{ said }} in two"));
        assert!(error.contains("`roles[0].instructions`"), "{error}");
        assert!(error.contains("uses `said`"), "{error}");
        let error = error_of(&DEBATE.replace("{{ topic }} Give your", "{{ tpoic }} Give your"));
        assert!(error.contains("`prompts.opening`") && error.contains("uses `tpoic`"), "{error}");
    }

    #[test]
    fn impossible_values_are_refused() {
        for (from, to, field) in [
            ("rounds: 2", "rounds: 0", "rounds"),
            ("rounds: 2", "rounds: 101", "rounds"),
            ("max_tokens: 120", "max_tokens: 0", "max_tokens"),
            ("name: Kurt", "name: Ada", "roles[1].name"),
            ("name: Kurt", "name: ../Kurt", "roles[1].name"),
            ("  topic: What", "  said: What", "vars.said"),
        ] {
            let error = error_of(&DEBATE.replace(from, to));
            assert!(error.starts_with(&format!("mine.yaml, `{field}`: ")), "{to}: {error}");
        }
    }

    #[test]
    fn what_was_said_is_never_read_as_a_template() {
        let (debate, vars) = (debate(), vars());
        let scene = Scene { vars: &vars, turn: 2, said: Some("{{ topic }} {% raw %}") };
        assert!(debate.prompt(scene).unwrap().contains("{{ topic }} {% raw %}"));
    }
}
