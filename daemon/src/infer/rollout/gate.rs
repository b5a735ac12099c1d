//! Whether a model on trial is healthy. Pure: it sees each answer, and returns the first bad sign, or that the trial is
//! over. The engine sees what cannot be answered at all (a crash, a hang, an error); one of them ends the trial.

use std::collections::VecDeque;

use crate::{config::Models, limits, model::baseline::Spread};

/// How long a trial takes, and what its scores should look like.
#[derive(Debug, Clone)]
pub struct Terms {
    /// At least this long, ns.
    pub least_ns: u64,
    /// And at least so many windows.
    pub windows: u64,
    /// The scores it was made with, where the bundle says.
    pub scores: Option<Spread>,
}

impl Terms {
    /// The terms of a configuration and a bundle.
    pub fn new(models: &Models, scores: Option<Spread>) -> Self {
        Self { least_ns: models.trial_s * 1_000_000_000, windows: models.trial_windows.max(1), scores }
    }

    /// Those of a model that takes over at once, because nothing serves that it could run beside: it is watched for that time
    /// as well, so its trial is as long as any other's.
    pub fn alone(self, shadow_ns: u64) -> Self {
        Self { least_ns: self.least_ns.saturating_add(shadow_ns), ..self }
    }
}

/// One trial.
#[derive(Debug, Clone)]
pub struct Gate {
    terms: Terms,
    /// When it was first looked at after its first answer, and when last: by the clock, not by the windows' own times, for
    /// those of a backlog are old.
    began_ns: Option<u64>,
    now_ns: u64,
    seen: u64,
    /// The newest scores.
    scores: VecDeque<f64>,
    /// The one score and the last window, as long as all answers were the same.
    same: Option<(f32, u64)>,
    /// Different windows in a row that were answered the same.
    same_run: u64,
    /// Windows in a row without an answer.
    unanswered_run: u64,
}

impl Gate {
    /// Before its first window.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            began_ns: None,
            now_ns: 0,
            seen: 0,
            scores: VecDeque::new(),
            same: None,
            same_run: 0,
            unanswered_run: 0,
        }
    }

    /// Time passes, with windows or without.
    pub fn look(&mut self, now_ns: u64) {
        if self.seen > 0 {
            self.began_ns.get_or_insert(now_ns);
        }
        self.now_ns = now_ns;
    }

    /// An answer: the score, and the digest of its window. Returns what is wrong with it.
    pub fn answered(&mut self, score: f32, window: u64) -> Option<String> {
        self.seen += 1;
        self.unanswered_run = 0;
        match &mut self.same {
            Some((only, last)) if *only == score => {
                self.same_run += u64::from(*last != window);
                *last = window;
            }
            same => {
                *same = Some((score, window));
                self.same_run = 0;
            }
        }
        // The first window with this score is one of them.
        if self.same_run + 1 >= limits::GATE_SAME {
            return Some(format!("it gives one score, {score}, for {} different windows", limits::GATE_SAME));
        }
        if self.scores.len() == limits::GATE_SCORES {
            self.scores.pop_front();
        }
        // A model that only names classes has no score.
        if score.is_finite() {
            self.scores.push_back(f64::from(score));
        }
        // The scores are looked at when there are enough, and then each time as many have come again.
        if self.seen.is_multiple_of(limits::GATE_SCORES as u64) { self.unlike() } else { None }
    }

    /// A window that it answered with an error or no number. In flawed windows (gaps, held values) some are borne.
    pub fn unanswered(&mut self, why: &str, coverage: f32) -> Option<String> {
        self.unanswered_run += 1;
        (coverage >= 1.0 || self.unanswered_run >= limits::GATE_UNANSWERED)
            .then(|| format!("inference failed for one window: {why}"))
    }

    /// The verdict: why it is rejected, or that it was healthy. `None` until the trial is over.
    pub fn over(&mut self) -> Option<Result<String, String>> {
        let began = self.began_ns?;
        let (took_ns, seen) = (self.now_ns.saturating_sub(began), self.seen);
        if took_ns < self.terms.least_ns || seen < self.terms.windows {
            return None;
        }
        Some(match self.unlike() {
            Some(why) => Err(why),
            None => Ok(format!("healthy for {} s and {seen} windows", took_ns / 1_000_000_000)),
        })
    }

    fn unlike(&self) -> Option<String> {
        let baseline = self.terms.scores.as_ref()?;
        let mut scores: Vec<f64> = self.scores.iter().copied().collect();
        let distance = baseline.distance(&mut scores)?;
        let text = || {
            format!("its scores are not those it was made with: distance {distance:.2}, at most {}", baseline.threshold)
        };
        (distance > baseline.threshold).then(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn gate(scores: Option<Spread>) -> Gate {
        Gate::new(Terms { least_ns: 10 * S, windows: 20, scores })
    }

    #[test]
    fn trial_of_a_model_that_ran_beside_none_takes_the_time_beside_too() {
        let mut gate = Gate::new(Terms { least_ns: 10 * S, windows: 1, scores: None }.alone(5 * S));
        gate.answered(1.0, 1);
        gate.look(0);
        gate.look(14 * S);
        assert_eq!(gate.over(), None);
        gate.look(15 * S);
        assert!(gate.over().is_some_and(|end| end.is_ok()));
    }

    #[test]
    fn a_trial_takes_its_time_and_its_windows() {
        let mut gate = gate(None);
        for i in 0..20u64 {
            assert_eq!(gate.over(), None);
            assert_eq!(gate.answered(i as f32, i), None);
            gate.look(i * S / 4);
        }
        assert_eq!(gate.over(), None, "20 windows, but 5 s");
        gate.look(11 * S);
        assert!(gate.over().is_some_and(|end| end.is_ok()));
    }

    #[test]
    fn trial_begins_with_the_first_answer_and_does_not_pass_without_windows() {
        let mut gate = gate(None);
        gate.look(1000 * S);
        assert_eq!(gate.over(), None, "no window");
        // A backlog of an hour's windows is answered at once.
        (0..3600).for_each(|i| assert_eq!(gate.answered(i as f32, i), None));
        gate.look(1001 * S);
        assert_eq!(gate.over(), None, "3,600 windows, but no time has passed");
        gate.look(1011 * S);
        assert!(gate.over().is_some_and(|end| end.is_ok_and(|text| text.contains("10 s and 3600 windows"))));
    }

    #[test]
    fn one_answer_to_everything_is_a_bad_sign_unless_everything_is_the_same() {
        let (mut constant, mut idle) = (gate(None), gate(None));
        assert!((1..limits::GATE_SAME).all(|i| constant.answered(0.5, i).is_none()), "one window fewer is no sign");
        let sign = constant.answered(0.5, 0);
        assert!(sign.is_some_and(|why| why.contains("0.5")));
        assert!((0..1000).all(|_| idle.answered(0.5, 7).is_none()), "a machine at rest sends the same windows");
    }

    #[test]
    fn an_error_is_a_bad_sign_and_in_flawed_windows_only_a_run_of_them() {
        assert!(gate(None).unanswered("not_finite", 1.0).is_some());
        let mut flawed = gate(None);
        let borne = (0..).take_while(|_| flawed.unanswered("not_finite", 0.9).is_none()).count();
        assert_eq!(borne as u64, limits::GATE_UNANSWERED - 1);
    }

    #[test]
    fn scores_unlike_those_it_was_made_with_end_the_trial() {
        let mut made: Vec<f64> = (0..100).map(f64::from).collect();
        let baseline = Spread::of(&mut made, 0.5);
        let run = |shift: f32| {
            let mut gate = gate(baseline.clone());
            (0..100u64).for_each(|i| {
                assert_eq!(gate.answered(i as f32 + shift, i), None);
                gate.look(i * S);
            });
            gate.over().expect("over")
        };
        assert!(run(0.0).is_ok());
        assert!(run(90.0).is_err_and(|why| why.contains("distance")));
    }
}
