//! The threshold with a budget on simulated machines.

use super::*;

/// What a machine's scores are like.
#[derive(Debug, Clone, Copy)]
enum Scores {
    /// The absolute value of a normal variable: the distance of one feature.
    HalfNormal,
    /// Sum of four squares: the distance of four features.
    ChiSquare,
    Exponential,
    /// Heavy.
    LogNormal,
    /// Between 0 and 1: a probability.
    Share,
    /// Half normal with a memory of some windows, and a load that changes with the hour.
    Day,
}

const ALL: [Scores; 6] =
    [Scores::HalfNormal, Scores::ChiSquare, Scores::Exponential, Scores::LogNormal, Scores::Share, Scores::Day];

struct Machine {
    scores: Scores,
    random: fastrand::Rng,
    memory: f64,
    /// Unit and zero of its scores: of another model on each machine.
    unit: (f64, f64),
}

const STEP_S: u64 = 30;

impl Machine {
    fn new(n: u64) -> Self {
        let random = fastrand::Rng::with_seed(1000 + n);
        let scores = ALL[n as usize % ALL.len()];
        let unit = if matches!(scores, Scores::Share) { (1.0, 0.0) } else { (0.1 * (n + 1) as f64, n as f64 - 10.0) };
        Self { scores, random, memory: 0.0, unit }
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.random.f64()).ln()).sqrt();
        radius * (self.random.f64() * std::f64::consts::TAU).cos()
    }

    /// The score of the window at this moment, s; `fault`: how many deviations away the machine is.
    fn score(&mut self, at_s: u64, fault: f64) -> f32 {
        let raw = match self.scores {
            Scores::HalfNormal => (self.normal() + fault).abs(),
            Scores::ChiSquare => (0..4).map(|i| (self.normal() + if i == 0 { fault } else { 0.0 }).powi(2)).sum(),
            Scores::Exponential => -(1.0 - self.random.f64()).ln() + fault,
            Scores::LogNormal => (0.4 * self.normal()).exp() * (1.0 + fault / 2.0),
            Scores::Share => 1.0 / (1.0 + (4.0 - 0.5 * (self.normal() + fault)).exp()),
            Scores::Day => {
                self.memory = 0.8 * self.memory + 0.6 * self.normal();
                let load = 1.0 + 0.3 * (at_s as f64 / 86_400.0 * std::f64::consts::TAU).sin();
                load * (self.memory + fault).abs()
            }
        };
        (raw * self.unit.0 + self.unit.1) as f32
    }
}

/// Learns as a pipeline does. Returns the time at which it had learnt, s.
fn learn(tail: &mut Tail, machine: &mut Machine) -> u64 {
    for n in 0.. {
        let at_s = n * STEP_S;
        if let Some(learnt) = tail.learn(machine.score(at_s, 0.0), at_s * 1_000_000_000, false) {
            assert!(matches!(learnt, Learnt::Limit(_)), "{learnt:?}");
            return at_s;
        }
    }
    unreachable!()
}

/// Alarms as a pipeline raises them: one clears when a score is below a tenth under the threshold.
fn alarms(scores: impl Iterator<Item = f32>, limit: &Limit, zero: f64) -> usize {
    let clear = zero as f32 + (limit.threshold - zero as f32) * 0.9;
    let (mut raised, mut count) = (false, 0);
    for score in scores {
        if !raised && score > limit.threshold {
            count += 1;
        }
        raised = score > limit.threshold || raised && score >= clear;
    }
    count
}

#[test]
#[expect(clippy::print_stdout, reason = "the rates are the result")]
fn eight_weeks_of_normal_running_keep_the_budget_on_the_worst_of_twenty_machines_and_faults_are_found() {
    const WEEKS: u64 = 8;
    let (mut worst, mut all, mut found, mut windows) = (0.0f64, 0.0, 0, 0);
    let faults = [10.0, 15.0];
    for n in 0..20 {
        let (mut machine, mut tail) = (Machine::new(n), Tail::new(1.0, "m".into()));
        let learnt_s = learn(&mut tail, &mut machine);
        let limit = *tail.limit().expect("learnt");
        let normal = WEEKS * 7 * 86_400 / STEP_S;
        windows += normal;
        let zero = machine.unit.1;
        let count = alarms((0..normal).map(|i| machine.score(learnt_s + i * STEP_S, 0.0)), &limit, zero);
        let rate = count as f64 / WEEKS as f64;
        (worst, all) = (worst.max(rate), all + rate);
        println!(
            "machine {n:2} {:11} learnt {:4.1} h, shape {:5.2}: {rate:.2} false alarms a week",
            format!("{:?}", machine.scores),
            learnt_s as f64 / 3600.0,
            limit.shape
        );
        // A fault of an hour: it is found where one of its windows is beyond the threshold.
        for fault in faults {
            let hour = (0..120).map(|i| machine.score(i * STEP_S, fault)).collect::<Vec<_>>();
            found += usize::from(hour.iter().any(|score| *score > limit.threshold));
        }
    }
    let faulty = 20 * faults.len();
    println!(
        "MEASURED a budget of 1 false alarm a week, 20 machines, 8 weeks, {windows} windows: worst {worst:.2} a week, mean {:.2}; \
         {found} of {faulty} faults of an hour found",
        all / 20.0
    );
    assert!(worst <= 1.5, "{worst}");
    assert_eq!(found, faulty);
}

#[test]
fn shape_and_scale_of_a_known_tail_are_found() {
    let mut random = fastrand::Rng::with_seed(5);
    for expected in [-0.2, 0.0, 0.2] {
        let of = |u: f64| if expected == 0.0 { -u.ln() } else { (u.powf(-expected) - 1.0) / expected };
        let mut peaks: Vec<f64> = (0..20_000).map(|_| of(1.0 - random.f64())).collect();
        peaks.sort_by(f64::total_cmp);
        let (mean, found) = shape(&peaks).expect("a shape");
        assert!((found - expected).abs() < 0.04, "{found}, not {expected}");
        assert!((mean * (1.0 - found) - 1.0).abs() < 0.05, "a scale of {}", mean * (1.0 - found));
    }
    assert_eq!((shape(&[]), shape(&[0.0; 100])), (None, None));
}

#[test]
fn labels_move_the_threshold_up_and_never_out_of_its_bounds() {
    let (mut machine, mut tail) = (Machine::new(0), Tail::new(1.0, "m".into()));
    assert!(!tail.was_false(1e9), "nothing is learnt yet");
    learn(&mut tail, &mut machine);
    let before = *tail.limit().expect("learnt");
    let digest = tail.digest();
    assert!(before.low < before.threshold && before.threshold < before.high, "{before:?}");
    assert!(!tail.was_false(before.low) && !tail.was_false(f32::NAN) && tail.limit() == Some(&before));
    let score = before.threshold + 0.01 * (before.high - before.low);
    assert!(tail.was_false(score));
    let after = *tail.limit().expect("learnt");
    assert!(after.threshold > score && after.labels == 1 && tail.digest() != digest);
    assert!(tail.was_false(1e30) && !tail.was_false(1e30), "the bound is reached once");
    assert_eq!(tail.limit().expect("learnt").threshold, before.high);
}

#[test]
fn what_is_kept_goes_on_after_a_restart_and_is_refused_for_another_model_or_budget() {
    let (mut machine, mut whole) = (Machine::new(1), Tail::new(2.0, "m".into()));
    let mut parted = whole.clone();
    let mut at_ns = 0;
    loop {
        let score = machine.score(at_ns / 1_000_000_000, 0.0);
        let (a, b) = (whole.learn(score, at_ns, false), parted.learn(score, at_ns, false));
        if a.is_some() || b.is_some() {
            break;
        }
        if parted.n == 5000 {
            let (bytes, last_ns) = (parted.to_bytes(), parted.last_ns);
            parted = Tail::read(&bytes, 2.0, "m").expect("kept");
            assert_eq!(parted.last_ns, None, "the time between two runs is not counted");
            parted.last_ns = last_ns;
        }
        at_ns += STEP_S * 1_000_000_000;
    }
    assert_eq!(whole, parted);
    let bytes = whole.to_bytes();
    assert_eq!(Tail::read(&bytes, 2.0, "m").expect("kept").digest(), whole.digest());
    assert!(Tail::read(&bytes, 1.0, "m").is_err() && Tail::read(&bytes, 2.0, "n").is_err());
    assert!(Tail::read(&bytes[..bytes.len() / 2], 2.0, "m").is_err());
}

#[test]
fn scores_without_a_tail_and_windows_with_alarms_teach_nothing_and_say_why() {
    let day_ns = limits::TAIL_S as u64 * 1_000_000_000 / limits::TAIL_WINDOWS + 1_000_000;
    let play = |score: &dyn Fn(u64) -> f32, alarmed: bool| {
        let mut tail = Tail::new(1.0, "m".into());
        let mut end = None;
        for n in 0..=limits::TAIL_WINDOWS + 1 {
            end = end.or(tail.learn(score(n), n * day_ns, alarmed));
        }
        assert!(tail.limit().is_none() && tail.n < 10, "it begins again");
        end
    };
    assert!(matches!(play(&|_| 1.0, false), Some(Learnt::Again(why)) if why.contains("nearly all have one value")));
    assert!(matches!(play(&|n| (n % 97) as f32, true), Some(Learnt::Again(why)) if why.contains("100 %")));
    let mut tail = Tail::new(1.0, "m".into());
    assert_eq!((tail.learn(f32::NAN, 0, false), tail.n), (None, 0));
}
