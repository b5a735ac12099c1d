//! Frames into checked samples, windows and measurements. Pure but for `run`: no clock, no I/O. Time comes only
//! from the stamps and the sensors' own clocks.

mod align;
mod block;
pub mod decode;
mod edges;
mod json;
mod measure;
mod nmea;
mod number;
mod presence;
mod quality;
mod registers;
pub mod row;
mod rules;
mod sequence;
mod stage;
mod text;
mod time;
mod values;
mod windowing;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

pub use stage::{Inlet, run};
pub use time::parse_time;

use self::{
    align::Grid,
    decode::{Decoder, Refused, Row},
    measure::Measure,
    quality::SourceQuality,
    rules::ChannelRules,
    sequence::{Sequence, Step},
    values::Values,
    windowing::{RowRef, Windower},
};
use crate::{
    alarm::{Alarms, Origin},
    config::{Config, Framing, Port},
    flow::{
        Arrival, Class, Draft, Flaw, FrameBatch, Quality, Retain, SourceId, Stamp, StreamId, Window,
        event::EventStreams, meter::Meters, record::json_str,
    },
    limits,
};

/// Where each kind of record goes.
#[derive(Debug, Clone)]
pub struct Streams {
    /// `up/q/SOURCE`, by source.
    pub quality: Vec<StreamId>,
    /// `up/m/STREAM`, by stream.
    pub measurement: Vec<StreamId>,
    /// `up/p/PIPELINE`, by pipeline: windows that could not be made are counted as lost there.
    pub prediction: Vec<StreamId>,
    /// `up/e/KIND`.
    pub events: EventStreams,
}

/// What one step made.
#[derive(Debug, Default)]
pub struct Made {
    /// Windows, in order.
    pub windows: Vec<Window>,
    /// Measurements, quality and alarms on channels.
    pub drafts: Vec<Draft>,
    /// Windows that were due and could not be made.
    pub lost: BTreeMap<(StreamId, &'static str), u64>,
}

/// Where a pipeline's channel stands: place in the pipeline, place in the source's row.
type Places = Vec<(usize, usize)>;

/// What lies between two rows.
#[derive(Debug, Default)]
struct Gap {
    /// They do not join.
    is_there: bool,
    /// So many rows are missing, where that is known.
    missing: u64,
}

impl Gap {
    fn at_least(&mut self, missing: u64) {
        self.missing = missing;
        self.is_there |= missing > 0;
    }
}

struct SourceState {
    name: String,
    /// Streams that are made of it, as JSON strings with commas between them.
    affects: String,
    /// Its channels in the configuration, and their names.
    channels: Vec<(usize, String)>,
    values: Values,
    /// When values were last handed to the meters, ns.
    metered_ns: u64,
    decoder: Decoder,
    quality: SourceQuality,
    quality_stream: StreamId,
    own_time: bool,
    own_seq: bool,
    /// Rows that a frame makes.
    frame_rows: u64,
    /// Not every row holds every channel.
    partial: bool,
    sequence: Sequence,
    rules: Vec<ChannelRules>,
    gap_max_ns: Option<i64>,
    last_t_ns: Option<i64>,
    rows: u64,
    /// Rows known to be missing before the next one, where the sensor does not count itself.
    pending_missing: u64,
    /// Pipelines that take rows as they come, and grids, with where their channels stand.
    feeds: Vec<(usize, Places)>,
    measures: Vec<usize>,
    /// Alarms on its channels: place in the row, place at `alarms`.
    alarms: Vec<(usize, usize)>,
}

struct PipelineState {
    windower: Windower,
    grid: Option<Grid>,
    gap_max_ns: Option<i64>,
    last_t_ns: Option<i64>,
    /// Time of the grid is the sensors' own.
    own_time: bool,
    values: Vec<f32>,
    good: Vec<bool>,
}

/// The stage's state.
pub struct Signal {
    sources: Vec<SourceState>,
    pipelines: Vec<PipelineState>,
    measures: Vec<Measure>,
    alarms: Alarms,
    streams: Streams,
    row: Row,
    meters: Arc<Meters>,
}

impl Signal {
    /// Builds the stage for a configuration. `alarms`: those on channels.
    pub fn new(config: &Config, streams: Streams, alarms: Alarms, meters: Arc<Meters>) -> Self {
        let source = |i| source_state(config, SourceId(i as u16), &streams, &alarms);
        let sources = (0..config.sources.len()).map(source).collect();
        let pipelines = config.pipelines.iter().enumerate().map(|(i, p)| {
            let sources = p.channels.iter().map(|c| &config.sources[usize::from(config.channels[*c].source.0)]);
            let width = p.channels.len();
            let late_ns = p.late_ms as i64 * 1_000_000;
            PipelineState {
                windower: Windower::new(i as u16, (p.steps, width, p.hop), p.on_bad, p.coverage_min),
                grid: p.step_ms.map(|ms| Grid::new(ms as i64 * 1_000_000, late_ns, width, p.steps)),
                gap_max_ns: p.gap_max_ms.map(|ms| ms as i64 * 1_000_000),
                last_t_ns: None,
                own_time: sources.into_iter().all(|s| s.time.is_some()),
                values: vec![0.0; width],
                good: vec![false; width],
            }
        });
        let measures = config.streams.iter().zip(&streams.measurement).map(|(stream, id)| {
            let row = config.channels_of(stream.source);
            let place = |c: &usize| (row.iter().position(|x| x == c).unwrap_or(0), config.channels[*c].name.clone());
            Measure::new(*id, stream, stream.channels.iter().map(place).collect())
        });
        Self {
            sources,
            pipelines: pipelines.collect(),
            measures: measures.collect(),
            alarms,
            streams: streams.clone(),
            row: Row::default(),
            meters,
        }
    }

    /// Takes one arrival; appends what it makes.
    pub fn step(&mut self, arrival: &Arrival, made: &mut Made) {
        match arrival {
            Arrival::Frames(batch) => self.frames(batch, made),
            Arrival::Tick(source, stamp) => self.tick(*source, *stamp, made),
            Arrival::Break(source, stamp, how) => {
                let state = &mut self.sources[usize::from(source.0)];
                state.quality.broke(how);
                state.decoder.reset();
                if state.rows > 0 {
                    state.unknown_missing(1);
                }
                self.tick(*source, *stamp, made);
            }
            Arrival::Fault(source, stamp, fault, n) => {
                let state = &mut self.sources[usize::from(source.0)];
                state.quality.fault(*fault, (*n).into());
                state.unknown_missing((*n).into());
                self.tick(*source, *stamp, made);
            }
        }
    }

    /// Frames of this source were shed before they came here.
    pub fn shed(&mut self, source: SourceId, frames: u64) {
        let state = &mut self.sources[usize::from(source.0)];
        state.quality.shed(frames);
        self.meters.sources[usize::from(source.0)].shed.add(frames);
        state.unknown_missing(frames);
    }

    /// Closes open intervals: the stop.
    pub fn finish(&mut self, stamp: Stamp, made: &mut Made) {
        for measure in &mut self.measures {
            let body = measure.flush();
            put(&mut made.drafts, measure.stream, Class::Measurement, stamp, body);
        }
    }

    fn frames(&mut self, batch: &FrameBatch, made: &mut Made) {
        let source = usize::from(batch.source.0);
        let mut row = std::mem::take(&mut self.row);
        let (mut rows, mut refused) = (0, 0);
        for frame in batch.frames() {
            match self.sources[source].decoder.decode(frame, batch.stamp, &mut row) {
                Ok(true) if row.seq.is_some_and(|seq| self.sources[source].sequence.is_beyond(seq)) => {
                    refused += 1;
                    self.refused(source, frame, Refused::Sequence);
                }
                Ok(true) => {
                    let frame = frame.unwrap_or_default();
                    self.sources[source].quality.frame(batch.stamp);
                    loop {
                        rows += 1;
                        if self.row(source, &mut row, batch.stamp, made) {
                            let state = &mut self.sources[source];
                            state.values.example(state.decoder.bare(frame));
                        }
                        if !self.sources[source].decoder.more(frame, &mut row) {
                            break;
                        }
                    }
                }
                Ok(false) => self.sources[source].quality.frame(batch.stamp),
                Err(why) => {
                    refused += 1;
                    self.refused(source, frame, why);
                }
            }
        }
        self.row = row;
        let meter = &self.meters.sources[source];
        meter.rows.add(rows);
        meter.refused.add(refused);
        if rows > 0 {
            meter.last_ns.store(batch.stamp.boot_ns, std::sync::atomic::Ordering::Relaxed);
        }
        self.tell_quality(source, batch.stamp, made);
    }

    fn refused(&mut self, source: usize, frame: Result<&[u8], Flaw>, why: Refused) {
        let source = &mut self.sources[source];
        source.quality.refused(why, frame.ok().map(|frame| source.decoder.bare(frame)));
        source.unknown_missing(source.frame_rows);
    }

    /// Returns whether its frame is wanted as an example of bad values.
    fn row(&mut self, source: usize, row: &mut Row, stamp: Stamp, made: &mut Made) -> bool {
        let state = &mut self.sources[source];
        let t_ns = row.t_ns.unwrap_or(stamp.boot_ns as i64);
        let Some(gap) = state.follows(row, t_ns) else { return false };
        self.meters.sources[source].missing.add(gap.missing);
        // A window over a gap is dropped also where the rows that are missing cannot be counted.
        let missing = if gap.is_there { gap.missing.max(1) } else { 0 };
        let example = state.judge(row, t_ns, stamp.boot_ns);
        let seq = row.seq.unwrap_or(state.rows);
        state.rows += 1;
        let (state, mut late) = (&self.sources[source], 0);
        for (pipeline, places) in &state.feeds {
            // By our clock: of a frame with many samples only the last one is as old as its arrival.
            let here_ns = if state.own_time { stamp.boot_ns as i64 } else { t_ns };
            let at = (seq, (t_ns, here_ns), stamp);
            let prediction = self.streams.prediction[*pipeline];
            late += feed(&mut self.pipelines[*pipeline], places, row, at, missing, prediction, made);
        }
        for i in &state.measures {
            let measure = &mut self.measures[*i];
            let body = measure.row(row, t_ns);
            put(&mut made.drafts, measure.stream, Class::Measurement, stamp, body);
        }
        let origin = Origin { seq: (seq, seq), t_ns: (t_ns, t_ns), stamp };
        for (in_row, alarm) in &state.alarms {
            let sample = (row.values[*in_row], row.quality[*in_row]);
            self.alarms.sample(*alarm, sample, origin, &mut made.drafts);
        }
        if late > 0 {
            self.sources[source].quality.late(late);
        }
        example
    }

    fn tick(&mut self, source: SourceId, stamp: Stamp, made: &mut Made) {
        let source = usize::from(source.0);
        let state = &self.sources[source];
        // Samples that come in frames are of a time that has passed: intervals end with them.
        if !state.own_time && state.frame_rows == 1 {
            for i in &state.measures {
                let measure = &mut self.measures[*i];
                let body = measure.tick(stamp.boot_ns as i64);
                put(&mut made.drafts, measure.stream, Class::Measurement, stamp, body);
            }
            for (pipeline, _) in &state.feeds {
                let prediction = self.streams.prediction[*pipeline];
                let pipeline = &mut self.pipelines[*pipeline];
                if !pipeline.own_time {
                    close_cells(pipeline, stamp.boot_ns as i64, stamp, prediction, made);
                }
            }
        }
        self.tell_quality(source, stamp, made);
    }

    fn tell_quality(&mut self, source: usize, stamp: Stamp, made: &mut Made) {
        let state = &mut self.sources[source];
        state.alarms.iter().for_each(|(_, alarm)| self.alarms.look(*alarm, stamp, &mut made.drafts));
        let body = state.quality.tell(stamp);
        if let Some(text) = state.quality.take_complaint() {
            tracing::warn!("{text}; until then it makes no row");
        }
        self.meters.sources[source].noise.store(state.quality.noise(), std::sync::atomic::Ordering::Relaxed);
        put(&mut made.drafts, state.quality_stream, Class::Status, stamp, body);
        self.tell_events(source, stamp, made);
    }

    /// What happened to the source and its channels as a whole.
    fn tell_events(&mut self, source: usize, stamp: Stamp, made: &mut Made) {
        let (state, events) = (&mut self.sources[source], &self.streams.events);
        let now_ns = stamp.boot_ns;
        if let Some(news) = state.quality.presence.look(now_ns) {
            let (kind, silent_ns, text) = news.report();
            let members = format!(",\"silent_ms\":{},\"affects\":[{}]", silent_ns / 1_000_000, state.affects);
            made.drafts.push(events.draft_with(kind, stamp, (&state.name, &text), &members));
        }
        let lost = state.quality.presence.lost();
        self.meters.sources[source].set_lost(lost);
        let began_ns = state.quality.presence.began_ns();
        for news in state.values.look(now_ns, began_ns, lost.text().is_some()) {
            let (kind, text) = news.report(&state.name);
            let mut members = format!(",\"share\":{:.3}", news.share);
            if let Some((example, _)) = &news.example {
                members.push_str(",\"example\":");
                json_str(&mut members, example);
            }
            made.drafts.push(events.draft_with(kind, stamp, (&state.channels[news.channel].1, &text), &members));
        }
        if now_ns.saturating_sub(state.metered_ns) >= limits::METER_NS {
            state.metered_ns = now_ns;
            for (((values, bad), share, now), (channel, _)) in state.values.take_counts().zip(&state.channels) {
                let meter = &self.meters.channels[*channel];
                meter.values.add(values);
                meter.bad.add(bad);
                meter.share.set(share.map_or(f32::NAN, |share| share as f32));
                meter.set_state(now);
            }
        }
    }
}

impl SourceState {
    /// Whether this row joins the previous one; `None`: it came already.
    fn follows(&mut self, row: &mut Row, t_ns: i64) -> Option<Gap> {
        let mut gap = Gap::default();
        match row.seq {
            Some(raw) => {
                let (seq, step) = self.sequence.step(raw, &row.values, t_ns, self.own_time);
                row.seq = Some(seq);
                match step {
                    Step::Joins => {}
                    Step::Missing(n) => gap.at_least(n),
                    Step::Duplicate => {
                        self.quality.duplicate();
                        return None;
                    }
                    // A restart, a row that was overtaken, or a corrupted number. None of them joins, and what they cost is
                    // not known.
                    Step::Back => {
                        self.quality.reordered();
                        gap.is_there = true;
                    }
                    Step::Unknown => gap.is_there = true,
                }
            }
            None => gap.at_least(std::mem::take(&mut self.pending_missing)),
        }
        let step = self.last_t_ns.replace(t_ns).map_or(0, |last| t_ns.saturating_sub(last));
        if step < 0 && self.own_time {
            self.quality.backward();
            gap.is_there = true;
        }
        if self.gap_max_ns.is_some_and(|most| step > most) {
            gap.at_least(gap.missing.max(1));
        }
        if gap.is_there {
            self.quality.gap(gap.missing);
        }
        Some(gap)
    }

    /// The rules of the channels. Returns whether the row's frame is wanted as an example of bad values.
    fn judge(&mut self, row: &mut Row, t_ns: i64, now_ns: u64) -> bool {
        let mut example = false;
        let places = row.quality.iter_mut().zip(&row.values).zip(&mut self.rules).enumerate();
        for (channel, ((quality, value), rules)) in places {
            if quality.is_good()
                && let Some(why) = rules.check(*value, t_ns)
            {
                *quality = Quality::Bad(why);
            }
            if self.partial && *quality != Quality::Absent {
                self.quality.heard(channel, now_ns);
            }
            if !matches!(quality, Quality::Good | Quality::Absent) {
                self.quality.sample(channel, *quality);
            }
            if *quality != Quality::Absent {
                example |= self.values.value(channel, now_ns, (!quality.is_good()).then(|| quality.word()));
            }
        }
        example
    }

    /// Something unreadable arrived, or nothing where something was: rows may be missing before the next one. A sensor
    /// that counts itself will show whether they are.
    fn unknown_missing(&mut self, rows: u64) {
        if !self.own_seq {
            self.pending_missing += rows;
        }
    }
}

fn source_state(config: &Config, id: SourceId, streams: &Streams, on: &Alarms) -> SourceState {
    let source = &config.sources[usize::from(id.0)];
    let row = config.channels_of(id);
    let channels: Vec<_> = row.iter().map(|c| &config.channels[*c]).collect();
    let feeds = config.pipelines.iter().enumerate().filter_map(|(i, pipeline)| {
        let place = |(at, c): (usize, &usize)| row.iter().position(|x| x == c).map(|in_row| (at, in_row));
        let places: Places = pipeline.channels.iter().enumerate().filter_map(place).collect();
        (!places.is_empty()).then_some((i, places))
    });
    let feeds: Vec<_> = feeds.collect();
    let measures: Vec<usize> = (0..config.streams.len()).filter(|i| config.streams[*i].source == id).collect();
    let on_row = row.iter().enumerate();
    let alarms = on_row.flat_map(|(in_row, channel)| on.on_channel(*channel).map(move |alarm| (in_row, alarm)));
    let mut affects = String::new();
    let made_of = (feeds.iter().map(|(pipeline, _)| format!("p/{}", config.pipelines[*pipeline].name)))
        .chain(measures.iter().map(|stream| format!("m/{}", config.streams[*stream].name)));
    for (i, stream) in made_of.enumerate() {
        affects.push_str(if i > 0 { "," } else { "" });
        json_str(&mut affects, &stream);
    }
    let text = matches!(&source.port, Port::Serial(serial) if serial.framing == Framing::Lines);
    SourceState {
        name: source.name.clone(),
        affects,
        channels: row.iter().map(|c| (*c, config.channels[*c].name.clone())).collect(),
        values: Values::new(row.len(), matches!(source.port, Port::Modbus(_)), source.stale_ms),
        metered_ns: 0,
        decoder: Decoder::new(source, &channels),
        quality: SourceQuality::new(
            &source.name,
            channels.iter().map(|c| c.name.clone()).collect(),
            source.stale_ms,
            text,
        ),
        quality_stream: streams.quality[usize::from(id.0)],
        own_time: source.time.is_some(),
        own_seq: source.seq.is_some(),
        frame_rows: source.format.rows_of_a_frame(),
        partial: source.format.is_partial(),
        sequence: Sequence::new(source, source.format.rows_of_a_frame()),
        rules: channels.iter().map(|c| ChannelRules::new(c)).collect(),
        gap_max_ns: source.gap_max_ms.map(|ms| ms as i64 * 1_000_000),
        last_t_ns: None,
        rows: 0,
        pending_missing: 0,
        feeds,
        measures,
        alarms: alarms.collect(),
    }
}

/// One row into one pipeline: straight into its windows, or onto its grid. Returns the samples that came too late.
fn feed(
    pipeline: &mut PipelineState,
    places: &Places,
    row: &Row,
    (seq, (t_ns, here_ns), stamp): (u64, (i64, i64), Stamp),
    missing: u64,
    prediction: StreamId,
    made: &mut Made,
) -> u64 {
    let grid_t = if pipeline.own_time { t_ns } else { here_ns };
    if let Some(grid) = &mut pipeline.grid {
        let mut late = 0;
        for &(at, in_row) in places {
            let quality = row.quality[in_row];
            let missing = matches!(quality, Quality::Missing | Quality::Absent);
            if !missing && !grid.sample(at, grid_t, row.values[in_row] as f32, quality.is_good()) {
                late += 1;
            }
        }
        close_cells(pipeline, grid_t, stamp, prediction, made);
        return late;
    }
    if places.iter().all(|(_, in_row)| row.quality[*in_row] == Quality::Absent) {
        return 0;
    }
    let step = pipeline.last_t_ns.map(|last| t_ns.saturating_sub(last));
    pipeline.last_t_ns = Some(t_ns);
    let too_far = |(step, max): (i64, i64)| step > max || step < 0;
    let missing = missing.max(u64::from(step.zip(pipeline.gap_max_ns).is_some_and(too_far)));
    for &(at, in_row) in places {
        pipeline.values[at] = row.values[in_row] as f32;
        pipeline.good[at] = row.quality[in_row].is_good();
    }
    let row = RowRef { values: &pipeline.values, good: &pipeline.good, seq, t_ns, stamp };
    keep(pipeline.windower.push(row, missing), prediction, made);
    0
}

fn close_cells(pipeline: &mut PipelineState, t_ns: i64, stamp: Stamp, prediction: StreamId, made: &mut Made) {
    let PipelineState { grid: Some(grid), windower, last_t_ns, .. } = pipeline else {
        return;
    };
    let step = |from: &Grid, cell: &align::Cell| from.start_ns(cell);
    grid.close(t_ns, |grid, cell| {
        let start = step(grid, &cell);
        // Cells follow one another unless the grid began a new era.
        let missing = u64::from(last_t_ns.is_some_and(|last| start.saturating_sub(last) != grid.step_ns()));
        *last_t_ns = Some(start);
        let row = RowRef { values: &cell.values, good: &cell.good, seq: cell.number.max(0) as u64, t_ns: start, stamp };
        keep(windower.push(row, missing), prediction, made);
    });
}

fn keep(result: Result<Option<Window>, windowing::Dropped>, prediction: StreamId, made: &mut Made) {
    match result {
        Ok(window) => made.windows.extend(window),
        Err(why) => *made.lost.entry((prediction, why.word())).or_default() += 1,
    }
}

fn put(drafts: &mut Vec<Draft>, stream: StreamId, class: Class, stamp: Stamp, body: Option<Bytes>) {
    drafts.extend(body.map(|body| Draft { stream, class, stamp, lineage: None, body, retain: Retain::No }));
}
