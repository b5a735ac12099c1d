//! Scores of the devices whose pages are open: a ring for each pipeline. Only these devices' predictions are subscribed, so a fleet's
//! stream of them never comes here. Pure but for the clock that is handed in.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{limits, state::read};

/// Scores nearer to each other than this are one point, the highest, ms: what a chart of five minutes can show.
const STEP_MS: i64 = 500;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    at_ms: i64,
    score: Option<f64>,
    threshold: Option<f64>,
}

#[derive(Debug, Default)]
struct Watched {
    pages: usize,
    /// Points that ever came, and those that are kept, by pipeline.
    pipelines: BTreeMap<String, (u64, VecDeque<Point>)>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Scores(BTreeMap<String, Watched>);

impl Scores {
    /// A page of this device opened: whether its predictions have to be subscribed; `None`: too many are followed.
    pub fn open(&mut self, device: &str) -> Option<bool> {
        if !self.0.contains_key(device) && self.0.len() >= limits::WATCHED {
            return None;
        }
        let watched = self.0.entry(device.into()).or_default();
        watched.pages += 1;
        Some(watched.pages == 1)
    }

    /// It closed: whether the subscription has to end.
    pub fn close(&mut self, device: &str) -> bool {
        let Some(watched) = self.0.get_mut(device) else { return false };
        watched.pages = watched.pages.saturating_sub(1);
        if watched.pages > 0 {
            return false;
        }
        self.0.remove(device);
        true
    }

    /// Takes a message, if it is a prediction of a followed device.
    pub fn on(&mut self, topic: &str, prefix: &str, payload: &[u8], now_ms: i64) {
        let Some((site, name, rest)) = read::up(topic, prefix) else { return };
        let Some(pipeline) = rest.strip_prefix("p/") else { return };
        let Some(watched) = self.0.get_mut(&format!("{site}/{name}")) else { return };
        let Some(value) = read::payload(payload) else { return };
        if watched.pipelines.len() >= limits::EACH && !watched.pipelines.contains_key(pipeline) {
            return;
        }
        let first = value["ts"].as_str().and_then(|ts| ts.parse::<Timestamp>().ok()).map(Timestamp::as_millisecond);
        let (n, points) = watched.pipelines.entry(pipeline.into()).or_default();
        for record in read::records(&value) {
            let later_ms = record["t"].as_i64().unwrap_or(0) / 1_000_000;
            let at_ms = first.unwrap_or(now_ms).saturating_add(later_ms);
            let point = Point { at_ms, score: record["score"].as_f64(), threshold: record["threshold"].as_f64() };
            add(n, points, point);
        }
    }

    /// The points after `seen` of each pipeline, as `{pipeline: [[ms, score, threshold], …]}`; `seen` grows to what is known now.
    pub fn since(&self, device: &str, seen: &mut BTreeMap<String, u64>) -> Option<Value> {
        let mut out = serde_json::Map::new();
        for (pipeline, (n, points)) in &self.0.get(device)?.pipelines {
            let before = seen.insert(pipeline.clone(), *n).unwrap_or(0);
            let new = usize::try_from(n.saturating_sub(before)).unwrap_or(usize::MAX).min(points.len());
            let rows = points.iter().skip(points.len() - new).map(|p| json!([p.at_ms, p.score, p.threshold]));
            if new > 0 {
                out.insert(pipeline.clone(), rows.collect());
            }
        }
        (!out.is_empty()).then_some(Value::Object(out))
    }
}

fn add(n: &mut u64, points: &mut VecDeque<Point>, point: Point) {
    if let Some(last) = points.back_mut()
        && point.at_ms < last.at_ms + STEP_MS
    {
        // Late ones of an outage are left out: the chart is live.
        if point.at_ms >= last.at_ms && point.score > last.score {
            (last.score, last.threshold) = (point.score, point.threshold);
        }
        return;
    }
    if points.len() >= limits::POINTS {
        points.pop_front();
    }
    points.push_back(point);
    *n += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(ts: &str, records: usize, step_ns: i64) -> Vec<u8> {
        let data: Vec<Value> = (0..records as i64)
            .map(|i| json!({"seq": i, "t": i * step_ns, "score": i as f64, "threshold": 5.0}))
            .collect();
        json!({"ts": ts, "data": data}).to_string().into_bytes()
    }

    #[test]
    fn only_followed_devices_are_kept_and_a_page_gets_each_point_once() {
        let mut scores = Scores::default();
        let topic = "kl/s/d/up/p/pump";
        scores.on(topic, "", &message("2026-11-27T06:00:00.000Z", 3, 1_000_000_000), 0);
        assert_eq!((scores.open("s/d"), scores.open("s/d")), (Some(true), Some(false)));
        let mut seen = BTreeMap::new();
        assert_eq!(scores.since("s/d", &mut seen), None, "what came before is not kept");
        scores.on(topic, "", &message("2026-11-27T06:00:00.000Z", 3, 1_000_000_000), 0);
        let points = scores.since("s/d", &mut seen).expect("points");
        assert_eq!(points["pump"].as_array().map(Vec::len), Some(3));
        assert_eq!(points["pump"][1], json!([1_795_759_201_000_i64, 1.0, 5.0]));
        assert_eq!(scores.since("s/d", &mut seen), None);
        assert_eq!((scores.close("s/d"), scores.close("s/d")), (false, true));
    }

    #[test]
    fn a_fast_pipeline_is_thinned_to_its_highest_scores_and_stays_bounded() {
        let mut scores = Scores::default();
        scores.open("s/d");
        let mut seen = BTreeMap::new();
        scores.on("kl/s/d/up/p/fast", "", &message("2026-11-27T06:00:00.000Z", 100, 10_000_000), 0);
        let points = scores.since("s/d", &mut seen).expect("points");
        let highest: Vec<f64> = points["fast"].as_array().expect("list").iter().filter_map(|p| p[1].as_f64()).collect();
        assert_eq!(highest, [49.0, 99.0]);
        scores.on("kl/s/d/up/p/slow", "", &message("2026-11-27T06:00:00.000Z", 5000, 1_000_000_000), 0);
        assert_eq!(scores.0["s/d"].pipelines["slow"].1.len(), limits::POINTS);
    }
}
