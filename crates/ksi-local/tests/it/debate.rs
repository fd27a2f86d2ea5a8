use ksi_local::{Message, Request, Role, Sampling};

use crate::harness::{Reply, Session, ask, message, request};

const TOPIC: &str = "Is P=NP?";
const SPEAKERS: [(&str, &str); 2] = [("Ada", "yes"), ("Ben", "no")];

/// The longest run of words that two texts share, by whitespace, case and punctuation aside.
pub(crate) fn common_run(a: &str, b: &str) -> usize {
    let (a, b) = (words(a), words(b));
    let mut longest = 0;
    for from in 0..a.len() {
        for at in 0..b.len() {
            let pairs = a[from..].iter().zip(&b[at..]);
            longest = longest.max(pairs.take_while(|(x, y)| x == y).count());
        }
    }
    longest
}

fn words(text: &str) -> Vec<String> {
    let bare = |word: &str| word.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "");
    text.split_whitespace().map(bare).filter(|word| !word.is_empty()).collect()
}

/// What this speaker has seen when it is its turn: itself as the assistant, the other as a user.
fn messages(speaker: usize, turns: &[String]) -> Vec<Message> {
    let (name, side) = SPEAKERS[speaker];
    let (other, _) = SPEAKERS[1 - speaker];
    let system = format!(
        "You are {name}, an expert in a friendly debate with {other}. The question is: {TOPIC} \
         Your answer is {side}. Explain your opinion in two or three short sentences."
    );
    let mut messages = vec![message(Role::System, &system)];
    if speaker == 0 {
        messages.push(message(Role::User, &format!("{TOPIC} Why is the answer {side}?")));
    }
    for (at, turn) in turns.iter().enumerate() {
        messages.push(if at % 2 == speaker {
            message(Role::Assistant, turn)
        } else {
            let reply = format!("{other} says: {turn}\n\nYou disagree. Why is the answer {side}?");
            message(Role::User, &reply)
        });
    }
    messages
}

fn debate(seed: u64, max_tokens: usize, count: usize) -> Vec<Reply> {
    let mut session = Session::start();
    let mut turns: Vec<String> = Vec::new();
    let mut replies = Vec::new();
    for at in 0..count {
        let reply = session.ask(&Request {
            id: format!("t{at}"),
            conversation: Some(format!("o_1/{}", SPEAKERS[at % 2].0)),
            messages: messages(at % 2, &turns),
            max_tokens,
            seed,
            avoid: turns.clone(),
            sampling: Sampling::default(),
        });
        turns.push(reply.text());
        replies.push(reply);
    }
    replies
}

#[test]
fn on_a_fixed_seed_no_turn_is_empty_and_none_repeats_twelve_words() {
    let replies = debate(7, 120, 4);
    let texts: Vec<_> = replies.iter().map(Reply::text).collect();
    for (at, text) in texts.iter().enumerate() {
        assert!(words(text).len() >= 4, "turn {at}: {text}");
        assert!(replies[at].done().usage.output <= 120);
        for earlier in &texts[..at] {
            assert!(common_run(earlier, text) < 12, "turn {at}: {text}\nrepeats: {earlier}");
        }
    }
    let cached = |at: usize| replies[at].done().usage.cached;
    assert!(cached(2) > 0 && cached(3) > cached(2), "a speaker's second turn reuses its first");
}

#[test]
fn a_speaker_that_is_asked_to_repeat_a_turn_cannot() {
    let said = "The class of problems that a machine can check quickly is larger than the class \
                of problems that it can solve quickly.";
    let asked = format!("Repeat this sentence word for word: {said}");
    let reply =
        &ask(&[Request { max_tokens: 60, ..request(vec![message(Role::User, &asked)]) }])[0];
    assert!(common_run(said, &reply.text()) < 8, "{}", reply.text());
}

#[test]
fn the_same_seed_gives_the_same_debate_and_another_seed_another() {
    let texts = |seed, count| debate(seed, 20, count).iter().map(Reply::text).collect::<Vec<_>>();
    let once = texts(7, 4);
    assert_eq!(once, texts(7, 4));
    assert_ne!(once[..1], texts(8, 1), "it differs from its first turn on");
}

#[test]
fn common_runs_are_counted_without_case_and_punctuation() {
    assert_eq!(common_run("a b, C d", "x A b c. y"), 3);
    assert_eq!(common_run("a", "b"), 0);
}
