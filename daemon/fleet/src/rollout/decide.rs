//! What to do next in a rollout: a pure function from where it stands to a step. The same function answers `--dry-run`. It remembers
//! nothing, so a controller that was killed goes on, and two that run at once do the same.

use kentledge::control::plans::Plan;

use super::progress::{Progress, Wave};

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Publish the secret of this wave (from 1) for all.
    Open(usize),
    /// Give these devices the secrets up to this wave: no more may run at a time.
    Grant(usize, Vec<String>),
    /// Publish the halt secret.
    Halt(String),
    /// Nothing yet; why.
    Wait(String),
    /// It is over; how, and whether well.
    Over(bool, String),
}

/// The next step.
pub fn next(plan: &Plan, all: &Progress, now_ms: i64) -> Step {
    if all.waves.iter().all(|wave| wave.devices == 0) {
        return Step::Wait("no device is known that this plan is for".into());
    }
    if all.halted {
        return Step::Over(false, "the plan is halted; resuming needs a signature".into());
    }
    if let Some((place, wave)) = too_many_failed(plan, all) {
        let (most, bad) = (percent(plan.limits.failed_max), percent(wave.share(wave.bad)));
        return Step::Halt(format!(
            "{} of {} devices of wave {} failed: {bad} is more than {most}",
            wave.bad,
            wave.devices,
            place + 1
        ));
    }
    let known = all.outside + all.waves.iter().map(|wave| wave.devices).sum::<u64>();
    if known < all.least {
        return Step::Wait(format!(
            "{known} devices are known that this plan is for; it waits until there are {}",
            all.least
        ));
    }
    if all.waves.iter().all(|wave| wave.ended == wave.devices) && all.open >= 1 {
        return Step::Over(true, "every device came to its end".into());
    }
    if now_ms >= plan.expires_ms {
        return Step::Over(false, "the plan has expired: no device starts any more".into());
    }
    for (place, wave) in all.waves.iter().enumerate() {
        if let Some(step) = in_wave(plan, all, place, wave, now_ms) {
            return step;
        }
    }
    let left: u64 = all.waves.iter().map(|wave| wave.devices - wave.ended).sum();
    Step::Wait(format!("all waves are open; {left} devices have not come to their end"))
}

/// The wave of which more failed than may: only an open one can have any.
fn too_many_failed<'a>(plan: &Plan, all: &'a Progress) -> Option<(usize, &'a Wave)> {
    let mut waves = all.waves.iter().enumerate();
    waves.find(|(_, wave)| wave.bad > 0 && wave.share(wave.bad) > plan.limits.failed_max)
}

/// What this wave needs; `None`: the next one is looked at.
fn in_wave(plan: &Plan, all: &Progress, place: usize, wave: &Wave, now_ms: i64) -> Option<Step> {
    let number = place + 1;
    if wave.devices == 0 && place >= all.open {
        // Devices that come later need its gate as well.
        return Some(Step::Open(number));
    }
    let grants = plan.limits.concurrent_max.is_some();
    let offline = wave.share(wave.unready);
    let reachable = offline <= plan.limits.offline_max;
    let closed = &all.closed[place];
    if place >= all.open || (grants && !closed.is_empty()) {
        if !reachable {
            let (n, most) = (wave.unready, percent(plan.limits.offline_max));
            return Some(Step::Wait(format!(
                "wave {number}: {n} of {} devices are offline, blocked or lack the plan: {} is more than {most}",
                wave.devices,
                percent(offline)
            )));
        }
        let Some(most) = plan.limits.concurrent_max else { return Some(Step::Open(number)) };
        let busy: u64 = all.waves.iter().map(|wave| wave.granted).sum();
        let free = usize::try_from(most.saturating_sub(busy)).unwrap_or(usize::MAX);
        if free == 0 {
            return Some(Step::Wait(format!("wave {number}: {busy} devices run, {most} may at a time")));
        }
        let some: Vec<String> = closed.iter().take(free).cloned().collect();
        return match some.is_empty() {
            true => Some(Step::Wait(format!("wave {number}: no device of it is connected"))),
            false => Some(Step::Grant(number, some)),
        };
    }
    if number == plan.waves.len() {
        return None;
    }
    let going = wave.devices - wave.ended - wave.unready;
    if going > 0 {
        return Some(Step::Wait(format!("wave {number}: {going} devices have not come to their end")));
    }
    if !reachable {
        return Some(Step::Wait(format!(
            "wave {number}: {} of {} devices did not come to their end and are offline or blocked",
            wave.unready, wave.devices
        )));
    }
    let hold_ms = i64::try_from(plan.waves[place].hold_s).unwrap_or(i64::MAX).saturating_mul(1000);
    let until_ms = wave.ended_ms.map_or(i64::MIN, |ended| ended.saturating_add(hold_ms));
    (now_ms < until_ms && place + 1 >= all.open).then(|| {
        let left_s = (until_ms - now_ms) / 1000;
        Step::Wait(format!("wave {number} is done; the next one opens in {left_s} s"))
    })
}

/// A share in words.
pub fn percent(share: f64) -> String {
    let text = format!("{:.2}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}
