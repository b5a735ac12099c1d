//! A fleet of light devices at a broker, for trials by hand: `fleet-sim PORT DEVICES [SECONDS [KEYSET [PERCENT_THAT_FAIL]]]`.

use std::time::Duration;

use rig::fleet::{Fleet, Ills, Size, rollout::Play};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize| args.get(i).map(|text| text.parse::<f64>().expect("a number"));
    let (port, devices) = (number(0).expect("PORT"), number(1).expect("DEVICES") as usize);
    let seconds = number(2).unwrap_or(3600.0);
    let fails = number(4).unwrap_or(1.0) / 100.0;
    let play = args.get(3).map(|keyset| Play { keyset: keyset.into(), fails, takes_s: 8.0 });
    let lines = devices.div_ceil(1000).clamp(1, 16);
    let (health_s, score_s) = if devices <= 100 { (10.0, 0.5) } else { (60.0, 30.0) };
    let size = Size { devices, lines, health_s, score_s };
    let fleet = Fleet::start(port as u16, size, Ills::SOME, play);
    std::thread::sleep(Duration::from_secs_f64(seconds));
    println!("{} devices had announced themselves, {} commands of plans", fleet.announced(), fleet.starts().len());
}
