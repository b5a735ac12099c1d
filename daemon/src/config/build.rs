//! Builds a valid `Config` from the merged tables. Each function reads one kind of table and reports every problem in it.

use std::{collections::BTreeMap, path::Path};

use super::{
    Commands, Config, Device, Metrics, Outbox, Pipeline, Problem, Stream, StreamMode, Tapes,
    alarm::alarm,
    integrations::integrations,
    layers::{self, Layer},
    models::models,
    mqtt::mqtt,
    names::{Names, channels, is_segment},
    output::{fighting, output, share},
    parts::twice,
    paths::{self, Paths},
    pipeline,
    problem::Problems,
    raw::{Node, Table, Value},
    samples::samples,
    source::{channel, overlapping, source},
};
use crate::{flow::SourceId, limits, model::keyset::Keyset};

/// The configuration, or all problems of it. Long, because each table is a line or two, in the order in which one needs another.
pub(super) fn build(layers: &[Layer]) -> Result<Config, Vec<Problem>> {
    let mut problems = Problems::default();
    let root = layers::read(layers, &mut problems);
    let base = match layers.first() {
        Some(Layer::Local(file)) => file.parent().unwrap_or(Path::new(".")).to_owned(),
        _ => Path::new(".").to_owned(),
    };
    let mut root = Table::new("", root, &mut problems);

    let device_node = root.node("device");
    let device = device(&mut root, device_node);
    let paths = Paths::new(&device.state_dir, &base);
    let mqtt_node = root.node("mqtt");
    let mqtt = mqtt_node.map(|node| mqtt(root.sub("mqtt".into(), node), &paths));
    if mqtt.is_some() && device.site.is_empty() {
        root.problem("device", "`device.site` is needed where there is a broker: the first part of every topic");
    }
    let commands_node = root.node("commands");
    let (commands, keyset_refused) = commands(&mut root, commands_node, &paths);
    let models_node = root.node("models");
    let models = models(&mut root, models_node, &paths);
    let outbox_node = root.node("outbox");
    let outbox = outbox(&mut root, outbox_node);
    let metrics_node = root.node("metrics");
    let metrics = metrics(&mut root, metrics_node);

    let mut names = Names {
        sources: BTreeMap::new(),
        channels: BTreeMap::new(),
        channel_source: Vec::new(),
        partial: Vec::new(),
        span_ms: Vec::new(),
        pipelines: BTreeMap::new(),
        allow_unsigned: models.allow_unsigned,
        keyset: commands.keyset.clone(),
        keyset_refused,
        paths,
    };
    let mut sources = each(&mut root, "source", |name, table| {
        let id = SourceId(names.sources.len() as u16);
        names.sources.insert(name.to_owned(), id);
        let source = source(name, table);
        names.partial.push(source.format.is_partial());
        names.span_ms.push(source.format.span_ms());
        Some(source)
    });
    overlapping(&mut root, &sources);
    let channels = each(&mut root, "channel", |name, table| {
        let channel = channel(name, table, &names, &sources);
        names.channels.insert(name.to_owned(), names.channels.len());
        names.channel_source.push(channel.source);
        Some(channel)
    });
    if channels.len() > limits::CHANNELS_MAX {
        root.problem("channel", format!("{} channels are more than {}", channels.len(), limits::CHANNELS_MAX));
    }
    let streams = each(&mut root, "stream", |name, table| stream(name, table, &names));
    let pipelines: Vec<Pipeline> = each(&mut root, "pipeline", |name, table| {
        let pipeline = pipeline::pipeline(name, table, &names)?;
        names.pipelines.insert(name.to_owned(), names.pipelines.len());
        Some(pipeline)
    });
    let alarms = each(&mut root, "alarm", |name, table| alarm(name, table, &names, &pipelines, &channels));
    let outputs = each(&mut root, "output", |name, table| Some(output(name, table, &alarms, &sources)));
    fighting(&mut root, &outputs, &sources);
    share(&mut sources, &outputs);
    let tapes_node = root.node("tapes");
    let tapes = tapes(&mut root, tapes_node);
    let samples_node = root.node("samples");
    let samples = samples(&mut root, samples_node);
    let integrations_node = root.node("integrations");
    let integrations = integrations(&mut root, integrations_node, mqtt.as_ref());
    root.finish();

    let config = Config {
        device,
        mqtt,
        sources,
        channels,
        streams,
        pipelines,
        alarms,
        outputs,
        tapes,
        samples,
        outbox,
        models,
        commands,
        metrics,
        integrations,
        layers: layers.to_vec(),
        set_aside: Vec::new(),
        not_provisioned: None,
    };
    if !problems.is_empty() {
        return Err(problems.into_sorted());
    }
    let id = config.device.id.clone();
    Ok(if id.is_empty() { config } else { config.named(&id) })
}

/// Reads all tables of one kind, and checks their names.
fn each<T>(root: &mut Table<'_>, kind: &'static str, mut read: impl FnMut(&str, Table<'_>) -> Option<T>) -> Vec<T> {
    let mut all = Vec::new();
    let (tables, keys): (Vec<_>, Vec<_>) =
        root.tables(kind).into_iter().partition(|(_, node)| matches!(node.value, Value::Table(_)));
    if let Some((key, _)) = keys.first() {
        let why = format!("`{key}` stands in `[{kind}]` itself: write `[{kind}.NAME]`, with a name of your choice");
        root.problem(kind, why);
    }
    for (name, node) in tables {
        let mut table = root.sub(format!("{kind}.{name}"), node);
        if !is_segment(&name) {
            table.problem("", "a name starts with a-z or 0-9 and goes on with a-z, 0-9, `_` or `-`, 64 at most");
        }
        all.extend(read(&name, table));
    }
    all
}

fn device(root: &mut Table<'_>, node: Option<Node>) -> Device {
    let Some(node) = node else {
        // A device without any configuration runs, stores, and reports what is missing.
        return Device::default();
    };
    let mut t = root.sub("device".into(), node);
    t.only_local(&["bus", "class"]);
    let (site, id) = (t.str("site"), t.str("id"));
    for (key, text) in [("site", &site), ("id", &id)] {
        if let Some(text) = text.as_ref().filter(|text| !is_segment(text)) {
            t.problem(key, format!("`{text}` is no topic segment: a-z, 0-9, then also `_` and `-`, 64 at most"));
        }
    }
    let cohorts = t.strs("cohorts").unwrap_or_default();
    if cohorts.len() > limits::COHORTS {
        t.problem("cohorts", format!("{} are more than {}", cohorts.len(), limits::COHORTS));
    }
    if let Some(bad) = cohorts.iter().find(|name| !is_segment(name)) {
        t.problem("cohorts", format!("`{bad}` is no topic segment: a-z, 0-9, then also `_` and `-`, 64 at most"));
    }
    let bus = t.str("bus").unwrap_or_else(|| "system".into());
    if !["system", "session", "off"].contains(&bus.as_str()) && !bus.starts_with("unix:") {
        t.problem("bus", format!("invalid bus `{bus}`: expected `system`, `session`, `off` or `unix:…`"));
    }
    let bus = Some(bus).filter(|bus| bus != "off");
    let class = t.str("class").unwrap_or_default();
    let state_dir = paths::local(&mut t, "state_dir").unwrap_or_else(|| Device::default().state_dir);
    t.finish();
    Device { site: site.unwrap_or_default(), id: id.unwrap_or_default(), state_dir, cohorts, class, bus }
}

/// `[commands]`, and whether its keyset was refused.
fn commands(root: &mut Table<'_>, node: Option<Node>, paths: &Paths) -> (Commands, bool) {
    let default = |path: &'static str| Some(Path::new(path).to_owned()).filter(|path| path.is_file());
    let mut commands = Commands {
        keyset: default("/etc/kentledge/keyset.json").or_else(|| default("/usr/lib/kentledge/keyset.json")),
        allow_unsigned: false,
        confirm_s: limits::CONFIRM_S,
        os_confirm_s: limits::OS_CONFIRM_S,
        jitter_s: limits::JITTER_S,
        plans: false,
    };
    let Some(node) = node else { return (commands, false) };
    let mut refused = false;
    let mut t = root.sub("commands".into(), node);
    t.only_local(&["keyset", "allow_unsigned"]);
    if let Some(path) = paths.file(&mut t, "keyset") {
        // That there is no file was said already.
        let read = path.is_file().then(|| Keyset::read(&path));
        refused = !matches!(read, Some(Ok(_)));
        if let Some(Err(why)) = read {
            t.problem("keyset", why);
        }
        commands.keyset = Some(path);
    }
    commands.allow_unsigned = t.bool("allow_unsigned").unwrap_or(false);
    commands.confirm_s = t.int("confirm_s", 10..=3600).map_or(limits::CONFIRM_S, |s| s as u64);
    commands.os_confirm_s = t.int("os_confirm_s", 10..=3600).map_or(limits::OS_CONFIRM_S, |s| s as u64);
    commands.jitter_s = t.int("jitter_s", 0..=3600).map_or(limits::JITTER_S, |s| s as u64);
    commands.plans = t.bool("plans").unwrap_or(false);
    if commands.plans && commands.keyset.is_none() {
        t.problem("plans", "a plan is signed: `commands.keyset` is needed");
    }
    t.finish();
    (commands, refused)
}

fn outbox(root: &mut Table<'_>, node: Option<Node>) -> Outbox {
    let mut outbox = Outbox {
        max_bytes: limits::STORE_MIB << 20,
        expire_reply_h: limits::EXPIRE_REPLY_H,
        expire_status_h: limits::EXPIRE_STATUS_H,
        expire_data_h: 0,
        backlog_kib_s: 0,
        linger_ms: 0,
    };
    let Some(node) = node else { return outbox };
    let mut t = root.sub("outbox".into(), node);
    let mut set = |key, range, to: &mut u64| {
        if let Some(n) = t.int(key, range) {
            *to = n as u64;
        }
    };
    let mut mib = limits::STORE_MIB;
    set("max_mib", 1..=1 << 20, &mut mib);
    outbox.max_bytes = mib << 20;
    set("expire_reply_h", 1..=87_600, &mut outbox.expire_reply_h);
    set("expire_status_h", 1..=87_600, &mut outbox.expire_status_h);
    set("expire_data_h", 0..=87_600, &mut outbox.expire_data_h);
    set("backlog_kib_s", 0..=1 << 20, &mut outbox.backlog_kib_s);
    set("linger_ms", 0..=limits::LINGER_MS, &mut outbox.linger_ms);
    t.finish();
    outbox
}

fn tapes(root: &mut Table<'_>, node: Option<Node>) -> Tapes {
    let mut tapes = Tapes {
        before_s: limits::TAPE_BEFORE_S,
        after_s: limits::TAPE_AFTER_S,
        ring_bytes: limits::TAPE_RING_BYTES,
        kept: limits::TAPES_KEPT,
    };
    let Some(node) = node else { return tapes };
    let mut t = root.sub("tapes".into(), node);
    tapes.before_s = t.int("before_s", 1..=3600).map_or(tapes.before_s, |n| n as u64);
    tapes.after_s = t.int("after_s", 0..=3600).map_or(tapes.after_s, |n| n as u64);
    tapes.ring_bytes = t.int("ring_mib", 1..=256).map_or(tapes.ring_bytes, |n| (n as usize) << 20);
    tapes.kept = t.int("kept", 1..=1000).map_or(tapes.kept, |n| n as usize);
    t.finish();
    tapes
}

fn metrics(root: &mut Table<'_>, node: Option<Node>) -> Metrics {
    let mut metrics = Metrics { interval_s: limits::HEALTH_S, listen: None };
    let Some(node) = node else { return metrics };
    let mut t = root.sub("metrics".into(), node);
    metrics.interval_s = t.int("interval_s", 1..=86_400).map_or(limits::HEALTH_S, |n| n as u64);
    if let Some(text) = t.str("listen") {
        // A port without an address: listen on this machine only.
        let address = if text.contains(':') { text.clone() } else { format!("127.0.0.1:{text}") };
        metrics.listen = address.parse().ok();
        if metrics.listen.is_none() {
            t.problem("listen", format!("`{text}` is no port, and no ADDRESS:PORT"));
        }
    }
    t.finish();
    metrics
}

fn stream(name: &str, mut t: Table<'_>, names: &Names) -> Option<Stream> {
    let list = t.strs("channels").unwrap_or_default();
    if list.is_empty() {
        t.problem("channels", "is needed: at least one channel");
    }
    if let Some(twice) = twice(&list) {
        t.problem("channels", format!("`{twice}` stands twice"));
    }
    let channels = channels(&mut t, "channels", &list, names);
    let source = channels.first().map(|c| names.channel_source[*c]);
    if channels.iter().any(|c| Some(names.channel_source[*c]) != source) {
        t.problem("channels", "must all come from one source; make a stream for each");
    }
    let (every, interval_ms) = (t.int("every", 2..=1_000_000), t.int("interval_ms", 10..=86_400_000));
    let known = t.word("mode", &["raw", "decimate", "stats"].map(|word| (word, word)));
    let mode = known.unwrap_or("raw");
    let decided = known.is_some() || !t.has("mode");
    for (key, of) in [("every", "decimate"), ("interval_ms", "stats")].into_iter().filter(|_| decided) {
        match (mode == of, t.has(key)) {
            (true, false) => t.problem(key, format!("is needed with `mode = \"{of}\"`")),
            (false, true) => t.problem(key, format!("belongs to `mode = \"{of}\"`")),
            _ => {}
        }
    }
    let mode = match (mode, every, interval_ms) {
        ("decimate", Some(every), _) => StreamMode::Decimate(every as u32),
        ("stats", _, Some(ms)) => StreamMode::Stats(ms as u64),
        _ => StreamMode::Raw,
    };
    t.finish();
    Some(Stream { name: name.to_owned(), channels, source: source?, mode })
}
