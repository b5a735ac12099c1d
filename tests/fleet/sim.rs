//! A fleet of light devices at a broker, for trials of the console by hand: `fleet-sim PORT DEVICES [SECONDS]`.

use std::time::Duration;

use rig::fleet::{Fleet, Ills, Size};

fn main() {
    let mut args = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("PORT DEVICES [SECONDS]: numbers"));
    let (port, devices) = (args.next().expect("PORT"), args.next().expect("DEVICES") as usize);
    let seconds = args.next().unwrap_or(3600);
    let lines = devices.div_ceil(1000).clamp(1, 16);
    let score_s = if devices <= 100 { 0.5 } else { 5.0 };
    let size = Size { devices, lines, health_s: 20.0, score_s };
    let fleet = Fleet::start(port as u16, size, Ills::SOME);
    std::thread::sleep(Duration::from_secs(seconds));
    println!("{} devices had announced themselves", fleet.announced());
}
