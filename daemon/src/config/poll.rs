//! Devices that speak only when they are asked: one request, or several with the format of each response.
//!
//! ```toml
//! requests = { kg = "SI\r\n", hum = { request = "H\r\n", columns = ["_", "rh"] } }
//! ```

use super::{
    Format, Framing, Poll,
    format::format,
    parts::{bytes, twice},
    raw::{Node, Table, Value},
};
use crate::limits;

/// The requests of a source, and the format of what it answers or sends unasked.
pub(super) fn poll(t: &mut Table<'_>, framing: &Framing) -> (Option<Poll>, Format) {
    let one = request(t);
    let all = t.tables_or_texts("requests");
    let keys = Keys::read(t);
    if all.is_empty() {
        if one.is_none() && !t.has("request") && !t.has("request_hex") {
            keys.unused(t);
        }
        return (one.map(|request| keys.poll(t, vec![request])), format(t, framing));
    }
    for key in ["request", "request_hex"] {
        if t.has(key) {
            t.problem(key, "cannot be used together with `requests`, which names every request");
        }
    }
    if all.len() > limits::REQUESTS {
        t.problem("requests", format!("{} requests are more than {}", all.len(), limits::REQUESTS));
    }
    let (mut requests, mut formats) = (Vec::new(), Vec::new());
    for (name, node) in all {
        let (request, format) = answer(t, &name, node, framing);
        requests.push(request);
        formats.push(format);
    }
    // Where a line does not say itself what it is, only the request does.
    let by_place =
        formats.iter().filter(|f| matches!(f, Format::Csv { .. } | Format::Fixed { .. } | Format::Binary(_)));
    let names = by_place.filter_map(Format::columns).flatten().map(str::to_owned).collect::<Vec<_>>();
    if let Some(twice) = twice(&names) {
        t.problem("requests", format!("`{twice}` is a column of two responses: each needs `columns` of its own"));
    }
    if formats.iter().any(|format| format.rows_of_a_frame() > 1) {
        t.problem("requests", "a response cannot hold arrays of samples");
    }
    let format = if formats.len() == 1 { formats.remove(0) } else { Format::Answers(formats) };
    (Some(keys.poll(t, requests)), format)
}

/// The keys of all requests.
struct Keys {
    every_ms: Option<u64>,
    answer_ms: Option<u64>,
    pause_ms: Option<u64>,
    echo: Option<bool>,
}

impl Keys {
    const NAMES: [&str; 4] = ["poll_ms", "answer_ms", "pause_ms", "echo"];

    fn read(t: &mut Table<'_>) -> Self {
        Self {
            every_ms: t.int("poll_ms", 10..=86_400_000).map(|n| n as u64),
            answer_ms: t.int("answer_ms", 1..=60_000).map(|n| n as u64),
            pause_ms: t.int("pause_ms", 0..=10_000).map(|n| n as u64),
            echo: t.bool("echo"),
        }
    }

    fn unused(&self, t: &mut Table<'_>) {
        for key in Self::NAMES {
            if t.has(key) {
                t.problem(key, "needs `request`, `request_hex` or `requests`: what the device is asked");
            }
        }
    }

    fn poll(&self, t: &mut Table<'_>, requests: Vec<Vec<u8>>) -> Poll {
        let every_ms = self.every_ms.unwrap_or(1000);
        let answer_ms = self.answer_ms.unwrap_or_else(|| every_ms.min(1000));
        if answer_ms > every_ms {
            let why = "a device must answer before it is asked again";
            t.problem("answer_ms", format!("{answer_ms} is longer than `poll_ms`, which is {every_ms}: {why}"));
        }
        // Only silence says that a response of several lines has ended.
        let usual = if requests.len() > 1 { limits::POLL_PAUSE_MS } else { 0 };
        Poll {
            requests,
            every_ms,
            answer_ms,
            pause_ms: self.pause_ms.unwrap_or(usual),
            echo: self.echo.unwrap_or(true),
        }
    }
}

/// `request` or `request_hex`, if one of them is there and can be sent.
fn request(t: &mut Table<'_>) -> Option<Vec<u8>> {
    let (text, raw) = (t.str("request"), bytes(t, "request_hex"));
    let request = match (text, raw) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(raw)) => raw,
        (Some(_), Some(_)) => {
            t.problem("request_hex", "cannot be used together with `request`: only one of them can be sent");
            return None;
        }
        (None, None) => return None,
    };
    if request.is_empty() || request.len() > limits::FRAME_BYTES {
        t.problem("request", format!("must have 1 to {} bytes", limits::FRAME_BYTES));
    }
    Some(request)
}

/// One of `requests`: the request, and the format of its response, with the source's keys where it has none of its own.
fn answer(t: &mut Table<'_>, name: &str, node: Node, framing: &Framing) -> (Vec<u8>, Format) {
    let node = match node.value {
        // `kg = "SI\r\n"`: the response is one value with this name.
        Value::Str(_) => {
            let at = node.at.clone();
            let column = Value::List(vec![Node { at: at.clone(), value: Value::Str(name.to_owned()) }]);
            let mut map = std::collections::BTreeMap::from([("request".to_owned(), node)]);
            if !t.has("format") && *framing == Framing::Lines {
                map.insert("columns".into(), Node { at: at.clone(), value: column });
            }
            Node { at, value: Value::Table(map) }
        }
        _ => node,
    };
    let own_format = matches!(&node.value, Value::Table(map) if map.contains_key("format"));
    // Keys of the source's format mean nothing to another format.
    let inherits = |key: &str| !own_format && !matches!(key, "requests" | "request" | "request_hex");
    let mut sub = t.inherit(format!("requests.{name}"), node, inherits);
    let request = request(&mut sub);
    if request.is_none() && !sub.has("request") && !sub.has("request_hex") {
        sub.problem("request", "is needed: what the device is asked");
    }
    let format = format(&mut sub, framing);
    let known = sub.finish_inherited();
    t.know(known);
    (request.unwrap_or_default(), format)
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Format, Port, Problem};

    fn source(keys: &str) -> Result<(super::Poll, Format), String> {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("c.toml");
        std::fs::write(&file, format!("[source.s]\npath = \"/dev/x\"\n{keys}\n")).expect("write");
        let lines =
            |problems: Vec<Problem>| problems.iter().map(|p| format!("{}: {}\n", p.key, p.why)).collect::<String>();
        let source = Config::local(Some(&file)).map_err(lines)?.sources.remove(0);
        match source.port {
            Port::Serial(serial) => Ok((serial.poll.ok_or("not polled")?, source.format)),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn one_request_is_as_it_was_and_several_have_a_format_each() {
        let (poll, format) = source("columns = [\"kg\"]\nrequest = \"W\\r\\n\"\npoll_ms = 500").expect("valid");
        assert_eq!(
            (poll.requests.len(), poll.every_ms, poll.answer_ms, poll.pause_ms, poll.echo),
            (1, 500, 500, 0, true)
        );
        assert!(matches!(format, Format::Csv { .. }));
        let keys = "delimiter = \";\"\necho = false\npause_ms = 30\n[source.s.requests]\nkg = \"W\\r\"\n\
                    rh = { request_hex = \"05 0d\", columns = [\"t\", \"rh\"] }\nz = { request = \"J\", format = \"json\" }";
        let (poll, format) = source(keys).expect("valid");
        assert_eq!(poll.requests, [b"W\r".to_vec(), vec![5, 13], b"J".to_vec()]);
        assert_eq!((poll.pause_ms, poll.echo), (30, false));
        let Format::Answers(all) = &format else { panic!("{format:?}") };
        assert_eq!(all[1].columns(), Some(vec!["t", "rh"]));
        assert!(matches!(&all[0], Format::Csv { delimiter: b';', columns } if columns == &["kg"]), "{all:?}");
        assert!(matches!(&all[2], Format::Json) && format.is_partial());
    }

    #[test]
    fn requests_that_cannot_be_meant_are_rejected_with_advice() {
        for (keys, wanted) in [
            ("columns = [\"a\"]\npause_ms = 5", "pause_ms: needs `request`"),
            ("columns = [\"a\"]\necho = true", "echo: needs `request`"),
            ("columns = [\"a\"]\nrequest = \"\"", "must have 1 to"),
            ("request = \"A\"\nrequests = { a = \"B\" }", "together with `requests`"),
            (
                "columns = [\"a\"]\nrequests = { x = { request = \"A\" }, y = { request = \"B\" } }",
                "`a` is a column of two responses",
            ),
            ("requests = { x = { columns = [\"a\"] } }", "requests.x.request: is needed"),
            (
                "requests = { x = { request = \"A\", colums = [\"a\"] } }",
                "requests.x.colums: unknown key; did you mean `columns`?",
            ),
            ("requests = { x = 5 }", "requests.x: must be a table or a text"),
            ("requests = { x = \"A\" }\npaus_ms = 5", "paus_ms: unknown key; did you mean `pause_ms`?"),
            ("requests = { x = \"A\" }\nanswer_ms = 2000", "answer_ms: 2000 is longer than `poll_ms`, which is 1000"),
        ] {
            let problems = source(keys).expect_err(keys);
            assert!(problems.contains(wanted), "{keys}: {problems}");
        }
    }
}
