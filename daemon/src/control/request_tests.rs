//! Which messages become a request, and which are rejected.

use super::{command::TABLE, *};
use crate::control::args::NoArgs;

fn why(payload: &str) -> Why {
    command("s/d", "ping", "a", payload.as_bytes()).expect_err(payload).0
}

#[test]
fn a_plain_command_is_read_and_everything_else_about_it_refused() {
    let text = r#"{"id":"a","issued":"2026-11-20T09:00:00Z","expires_at":"2026-11-20T09:01:00+00:00","args":{}}"#;
    let ping = command("s/d", "ping", "a", text.as_bytes()).expect("ping");
    assert_eq!((ping.command, ping.expires_ms), (Command::Ping(NoArgs {}), Some(1_795_165_260_000)));
    for bad in [
        "",
        "1",
        "[]",
        "{}",
        "{\"id\":\"b\"}",
        "{\"id\":\"a\",\"id\":\"a\"}",
        "{\"id\":\"a\",\"run\":\"sh\"}",
        "{\"id\":\"a\",\"args\":{\"x\":1}}",
        "{\"id\":\"a\",\"args\":[]}",
        "{\"id\":\"a\",\"expires_at\":\"tomorrow\"}",
        "{\"id\":\"a\"} {}",
        "{\"id\":\"a\",\"issued\":\"2026-11-20T09:00:00Z\",\"expires_at\":\"2036-11-20T09:00:00Z\"}",
    ] {
        assert_eq!(why(bad), Why::Malformed, "{bad}");
    }
    assert_eq!(command("s/d", "shell", "a", b"{\"id\":\"a\"}").expect_err("shell").0, Why::Unsupported);
    let big = format!("{{\"id\":\"a\",\"args\":{{\"x\":\"{}\"}}}}", "y".repeat(limits::COMMAND_BYTES));
    assert_eq!(why(&big), Why::Malformed);
    assert_eq!(why(&"[".repeat(50_000)), Why::Malformed);
}

#[test]
fn a_signed_command_must_name_the_topic_it_came_by() {
    let inner = concat!(
        r#"{"v":1,"id":"a","type":"ping","to":"s/d","issuer":"ops","iseq":7,"#,
        r#""issued":"2026-11-20T09:00:00Z","expires_at":"2026-11-20T09:01:00Z"}"#
    );
    let wrapped = serde_json::json!({"signed": inner, "sig": "eA=="}).to_string();
    let signed = command("s/d", "ping", "a", wrapped.as_bytes()).expect("signed").signed.expect("signed");
    assert_eq!((signed.text.as_str(), signed.minisig.as_str(), signed.iseq), (inner, "x", 7));
    for (to, kind, id) in [("s/e", "ping", "a"), ("s/_all", "ping", "a"), ("s/d", "reboot", "a"), ("s/d", "ping", "b")]
    {
        assert_eq!(command(to, kind, id, wrapped.as_bytes()).expect_err("other").0, Why::NotAddressed);
    }
    let long = serde_json::json!({"signed": inner.replace("s/d", &"x".repeat(50_000)), "sig": "eA=="}).to_string();
    let refused = guarded(|| command("s/d", "ping", "a", long.as_bytes())).expect_err("long");
    assert!(refused.1.chars().count() <= limits::RESULT_TEXT, "a stranger's words are cut");
    let issuer = serde_json::json!({"signed": inner.replace("ops", &"x".repeat(65)), "sig": "eA=="}).to_string();
    assert_eq!(command("s/d", "ping", "a", issuer.as_bytes()).expect_err("long").0, Why::Malformed);
    assert_eq!(desired("s/d", wrapped.as_bytes()).expect_err("no desired state").0, Why::Malformed);
    assert_eq!(desired("s/d", b"{}").expect_err("unsigned").0, Why::Unsigned);
}

#[test]
fn channel_and_desired_state_that_live_too_long_are_malformed() {
    let wrapped = |kind: &str, expires: &str, more: &str| {
        let head = format!(r#""v":1,"type":"{kind}","to":"s/d","issuer":"ops","version":7,"expires_at":"{expires}""#);
        let inner = format!(r#"{{{head},"issued":"2026-11-20T09:00:00Z",{more}}}"#);
        serde_json::json!({"signed": inner, "sig": "eA=="}).to_string()
    };
    for (expires, good) in
        [("2027-02-19T09:00:00Z", true), ("2027-02-21T09:00:00Z", false), ("2026-11-20T08:59:59Z", false)]
    {
        let read = channel("s/d", wrapped("channel", expires, r#""models":{}"#).as_bytes());
        assert_eq!(read.as_ref().err().map(|refusal| refusal.0), (!good).then_some(Why::Malformed), "{expires}");
    }
    for (expires, good) in [("2027-11-20T09:00:00Z", true), ("2999-11-20T09:00:00Z", false)] {
        let read = desired("s/d", wrapped("desired", expires, r#""config":{"toml":""}"#).as_bytes());
        assert_eq!(read.as_ref().err().map(|refusal| refusal.0), (!good).then_some(Why::Malformed), "{expires}");
    }
}

#[test]
fn a_response_topic_is_answered_only_below_the_devices_own_place_for_answers() {
    for topic in ["kl/s/d/up/_r/a", "kl/s/d/up/_r/ops/7f3a-1", "kl/s/d/up/_r/$a"] {
        assert!(is_response_topic("s/d", topic), "{topic}");
    }
    let (deep, long) = (format!("kl/s/d/up/_r/{}", ["a"; 300].join("/")), format!("kl/s/d/up/_r/{}", "a".repeat(600)));
    for bad in [
        "kl/s/d/up/_r",
        "kl/s/d/up/_r/",
        "kl/s/d/up/_r//a",
        "kl/s/d/up/_r/a/",
        "kl/s/d/up/_rest/a",
        "kl/s/d/up/a/hot",
        "kl/s/d/up/_r/+",
        "kl/s/d/up/_r/a#",
        "kl/s/d/up/_r/a b",
        "kl/s/d/up/_r/\u{1}",
        "kl/s/d/up/_r/ä",
        "kl/s/e/up/_r/a",
        "kl/s/dd/up/_r/a",
        "kl/s/ops/answers",
        "xkl/s/d/up/_r/a",
        "",
        &deep,
        &long,
    ] {
        assert!(!is_response_topic("s/d", bad), "{bad}");
    }
}

#[test]
fn whatever_arrives_is_a_request_or_a_refusal() {
    let seeds = [
        r#"{"id":"a","issued":"2026-11-20T09:00:00Z","expires_at":"2026-11-20T09:01:00Z","nonce":"x","args":{"toml":"x"}}"#,
        r#"{"signed":"{\"v\":1,\"id\":\"a\",\"type\":\"ping\",\"args\":{}}","sig":"eA=="}"#,
    ];
    for _ in 0..20_000 {
        let mut bytes = seeds[fastrand::usize(0..seeds.len())].as_bytes().to_vec();
        for _ in 0..fastrand::usize(1..6) {
            let at = fastrand::usize(0..bytes.len().max(1));
            match fastrand::u8(0..4) {
                _ if bytes.is_empty() => bytes.push(b'{'),
                0 => bytes[at] = fastrand::u8(..),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"{}[]\",:0\\"[fastrand::usize(0..9)]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        let kind = TABLE[fastrand::usize(0..TABLE.len())].name;
        if let Ok(request) = command("s/d", kind, "a", &bytes) {
            assert_eq!((request.kind.as_str(), request.id.as_str()), (kind, "a"));
        }
        let _ = desired("s/d", &bytes);
    }
}

#[test]
fn base64_is_that_of_the_standard() {
    for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9v\nYg==\n", "foob")] {
        assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
    }
    assert!(base64("a").is_none() && base64("Zm-v").is_none());
}
