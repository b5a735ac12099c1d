//! Whether a sample and a window cost the same however many channels, models and ports there are: instructions, counted by callgrind on
//! the road (`road_tests`). The short form plays the ends of each curve, the long one (KENTLEDGE_LONG=1) what
//! `daemon/docs/pictures/scale.py` draws.

use super::road_tests::{Shape, WIDTH, counted};

/// A sample, or a window, may cost so much more than where there is one of all. 20 % is what we promise; 2 % is what was counted.
const FLAT: f64 = 0.1;

/// One curve: what there is more and more of, and what is counted for it.
struct Curve {
    what: &'static str,
    most: &'static [usize],
    shape: fn(usize) -> Shape,
}

const BASE: Shape = Shape { ports: 1, channels: WIDTH, models: 1, hop: 1, rows: 100 };

const CURVES: [Curve; 3] = [
    Curve { what: "channels", most: &[8, 32, 128, 512], shape: |n| Shape { channels: n, rows: 40, ..BASE } },
    Curve { what: "models", most: &[1, 2, 4, 8, 16], shape: |n| Shape { models: n, ..BASE } },
    Curve { what: "ports", most: &[1, 2, 4, 8, 16], shape: |n| Shape { ports: n, ..BASE } },
];

/// Instructions for a sample (a value of a row) and for a window.
fn costs(shape: Shape) -> (f64, f64) {
    let row = counted(Shape { hop: 0, ..shape }).instructions;
    let both = counted(shape).instructions;
    (row / shape.channels as f64, (both - row) / shape.models as f64)
}

#[expect(clippy::print_stdout, reason = "what they cost is a result")]
#[test]
fn sample_and_window_cost_the_same_with_many_channels_models_and_ports() {
    let long = std::env::var_os("KENTLEDGE_LONG").is_some();
    let mut steep = Vec::new();
    for Curve { what, most, shape } in CURVES {
        let ends = [most[0], most[most.len() - 1]];
        let points: Vec<(usize, (f64, f64))> =
            if long { most } else { &ends[..] }.iter().map(|n| (*n, costs(shape(*n)))).collect();
        let (_, (first_sample, first_window)) = points[0];
        for (n, (sample, window)) in points {
            println!("MEASURED: scale {what} {n}: sample {sample:.0} window {window:.0}");
            // Cheaper is no fault: what a row costs by itself is shared by its samples.
            for (of, cost, first) in [("sample", sample, first_sample), ("window", window, first_window)] {
                if cost > first * (1.0 + FLAT) {
                    steep.push(format!(
                        "a {of} costs {cost:.0} instructions with {n} {what}, and {first:.0} with {}",
                        most[0]
                    ));
                }
            }
        }
    }
    assert!(steep.is_empty(), "{}", steep.join("; "));
}
