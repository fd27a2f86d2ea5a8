//! Chooses the next token from the model's scores.

use std::cmp::Ordering;
use std::collections::HashSet;

use fastrand::Rng;

use crate::protocol::Sampling;

/// Candidates looked at first; the rules rarely forbid more.
const FIRST_LOOK: usize = 64;

/// A seeded choice among the likely tokens that are allowed.
pub(crate) struct Sampler {
    sampling: Sampling,
    rng: Rng,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling, seed: u64) -> Self {
        Self { sampling, rng: Rng::with_seed(seed) }
    }

    /// Makes tokens that were used before less likely.
    pub(crate) fn penalize(&self, scores: &mut [f32], used: &HashSet<u32>) {
        let penalty = self.sampling.repetition_penalty;
        for &token in used {
            let Some(score) = scores.get_mut(token as usize) else { continue };
            *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
        }
    }

    /// The next token, or nothing if not one is allowed.
    pub(crate) fn choose(&mut self, scores: &[f32], allows: impl Fn(u32) -> bool) -> Option<u32> {
        let likely = likely(scores, self.width(), allows);
        let (first, best) = *likely.first()?;
        if self.sampling.temperature <= 0.0 {
            return Some(first);
        }
        let weight = |score: f32| ((score - best) / self.sampling.temperature).exp();
        let weights: Vec<f32> = likely.iter().map(|(_, score)| weight(*score)).collect();
        let kept = nucleus(&weights, self.sampling.top_p);
        let total: f32 = weights[..kept].iter().sum();
        let mut left = self.rng.f32() * total;
        for ((token, _), weight) in likely.iter().zip(&weights[..kept]) {
            left -= weight;
            if left <= 0.0 {
                return Some(*token);
            }
        }
        Some(first)
    }

    fn width(&self) -> usize {
        if self.sampling.temperature <= 0.0 { 1 } else { self.sampling.top_k.max(1) }
    }
}

/// The best `count` allowed tokens, best first; equal scores in the order of the vocabulary.
fn likely(scores: &[f32], count: usize, allows: impl Fn(u32) -> bool) -> Vec<(u32, f32)> {
    let mut ranked: Vec<(u32, f32)> =
        (0..).zip(scores.iter().copied()).filter(|(_, score)| score.is_finite()).collect();
    let mut look = count.max(FIRST_LOOK);
    let mut seen = 0;
    let mut likely = Vec::new();
    while seen < ranked.len() && likely.is_empty() {
        let rest = &mut ranked[seen..];
        let look_now = look.min(rest.len());
        if look_now < rest.len() {
            rest.select_nth_unstable_by(look_now, better);
        }
        rest[..look_now].sort_unstable_by(better);
        let allowed = rest[..look_now].iter().filter(|(token, _)| allows(*token));
        likely.extend(allowed.take(count));
        seen += look_now;
        look *= 8;
    }
    likely
}

fn better(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// How many of these falling weights make up the share `top_p` of all.
fn nucleus(weights: &[f32], top_p: f32) -> usize {
    let enough = weights.iter().sum::<f32>() * top_p;
    let mut sum = 0.0;
    let reached = weights.iter().position(|weight| {
        sum += weight;
        sum >= enough
    });
    reached.map_or(weights.len(), |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f32; 5] = [0.0, 4.0, 3.9, 1.0, f32::NAN];

    fn sampler(temperature: f32, seed: u64) -> Sampler {
        Sampler::new(Sampling { temperature, ..Sampling::default() }, seed)
    }

    #[test]
    fn without_temperature_the_best_allowed_token_wins() {
        assert_eq!(sampler(0.0, 1).choose(&SCORES, |_| true), Some(1));
        assert_eq!(sampler(0.0, 1).choose(&SCORES, |token| token != 1), Some(2));
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let choices = |seed| {
            let mut sampler = sampler(1.0, seed);
            (0..50).map(|_| sampler.choose(&SCORES, |_| true)).collect::<Vec<_>>()
        };
        assert_eq!(choices(7), choices(7));
        assert_ne!(choices(7), choices(8));
    }

    #[test]
    fn an_unlikely_token_is_found_when_it_is_the_only_one_allowed() {
        let scores: Vec<f32> = (0..1000).map(|at| -(at as f32)).collect();
        assert_eq!(sampler(0.7, 1).choose(&scores, |token| token == 999), Some(999));
    }

    #[test]
    fn nothing_is_chosen_when_nothing_is_allowed_or_no_score_is_a_number() {
        assert_eq!(sampler(0.7, 1).choose(&SCORES, |_| false), None);
        assert_eq!(sampler(0.7, 1).choose(&[f32::NAN; 200], |_| true), None);
    }

    #[test]
    fn used_tokens_become_less_likely_on_either_side_of_zero() {
        let mut scores = [2.0, -2.0, 2.0];
        sampler(0.7, 1).penalize(&mut scores, &HashSet::from([0, 1, 99]));
        assert!(scores[0] < 2.0 && scores[1] < -2.0);
        assert_eq!(scores[2], 2.0);
    }

    #[test]
    fn the_tail_beyond_top_p_is_cut() {
        assert_eq!(nucleus(&[0.5, 0.3, 0.2], 0.7), 2);
        assert_eq!(nucleus(&[0.5, 0.3, 0.2], 1.0), 3);
    }
}
