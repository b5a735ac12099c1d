//! What `[mqtt]` takes, and what it refuses with what words.

use std::fs;

use super::*;
use crate::config::Config;

/// `[mqtt]` with these lines, or its problems.
fn read(lines: &str) -> Result<Mqtt, Vec<String>> {
    let dir = tempfile::tempdir().expect("folder");
    let (file, secret) = (dir.path().join("c.toml"), dir.path().join("secret"));
    fs::write(&secret, "pw\n").expect("write");
    let lines = lines.replace("SECRET", &secret.display().to_string());
    fs::write(&file, format!("[device]\nsite = \"s\"\nid = \"d\"\n[mqtt]\n{lines}\n")).expect("write");
    let config = Config::local(Some(&file));
    let cut = |problem: super::super::Problem| format!("{}: {}: {}", problem.at.line, problem.key, problem.why);
    config.map(|config| config.mqtt.expect("mqtt")).map_err(|all| all.into_iter().map(cut).collect())
}

fn shown(broker: &Broker) -> String {
    format!("{broker} tls={} path={:?}", broker.secure, broker.path)
}

#[test]
fn every_scheme_has_its_port_and_only_websockets_have_a_path() {
    for (url, expected) in [
        ("mqtts://b.example", "b.example:8883 tls=true path=None"),
        ("mqtts://b.example:443/", "b.example:443 tls=true path=None"),
        ("mqtt://localhost", "localhost:1883 tls=false path=None"),
        ("mqtt://[::1]", "[::1]:1883 tls=false path=None"),
        ("mqtts://[2001:db8::7]:8884", "[2001:db8::7]:8884 tls=true path=None"),
        ("wss://b.example", "b.example:443 tls=true path=Some(\"/mqtt\")"),
        ("wss://b.example:8084/ws?a=1", "b.example:8084 tls=true path=Some(\"/ws?a=1\")"),
        ("ws://127.0.0.1:8080/", "127.0.0.1:8080 tls=false path=Some(\"/\")"),
    ] {
        let mqtt = read(&format!("url = \"{url}\"")).unwrap_or_else(|why| panic!("{url}: {why:?}"));
        assert_eq!(shown(&mqtt.brokers[0]), expected, "{url}");
    }
}

#[test]
fn several_brokers_are_a_list_in_its_order() {
    let mqtt = read("url = [\"mqtts://a.example\", \"wss://a.example\", \"mqtts://b.example:8884\"]").expect("valid");
    let all: Vec<String> = mqtt.brokers.iter().map(ToString::to_string).collect();
    assert_eq!(all, ["a.example:8883", "a.example:443", "b.example:8884"]);
    assert!(mqtt.tls.is_some());
}

#[test]
fn wrong_addresses_and_keys_are_refused_with_what_to_write() {
    for (lines, expected) in [
        (
            "url = \"ssl://b\"",
            "5: mqtt.url: must be `mqtts://HOST[:PORT]`, or begin with `mqtt://`, `wss://` or `ws://`; `ssl://` is invalid: did",
        ),
        ("url = \"mqtss://b\"", "did you mean `mqtts://`?"),
        ("url = \"https://b\"", "did you mean `wss://`?"),
        ("url = \"b.example:8883\"", "5: mqtt.url: must be `mqtts://HOST"),
        ("url = \"mqtts://u:p@b\"", "write `username` and `password_file` instead"),
        ("url = \"mqtts://a,b\"", "write a list, `url = [\"mqtts://A\", \"mqtts://B\"]`"),
        ("url = \"mqtts://b/path\"", "only `wss://` and `ws://` have a path"),
        ("url = \"mqtts://b:99999\"", "invalid address `b:99999`"),
        ("url = \"mqtts://[::1\"", "invalid address `[::1`"),
        ("url = []", "must name a broker"),
        ("url = 1883", "must be text, not"),
        ("url = [\"mqtts://b\", \"mqtts://b\"]", "is there twice"),
        (
            "url = [\"mqtts://b\", \"mqtt://c.example\"]",
            "c.example:1883: plain text is allowed to this machine only; use `mqtts://`",
        ),
        ("url = \"ws://c.example\"", "use `wss://`"),
        ("username = \"u\"", "mqtt.url: is needed"),
        ("url = \"mqtt://localhost\"\nalpn = [\"mqtt\"]", "6: mqtt.alpn: works with TLS only"),
        ("url = \"mqtts://b\"\nalpn = [\"\"]", "1 to 255 bytes"),
        ("url = \"mqtts://b\"\nalpn = \"mqtt\"", "6: mqtt.alpn: must be a list of texts"),
        ("url = \"mqtts://b\"\nserver_name = \"a b\"", "`a b` is no host name"),
        (
            "url = \"mqtts://b\"\nproxy = \"socks5://p\"",
            "6: mqtt.proxy: `socks5://p` is invalid: expected `http://HOST[:PORT]`",
        ),
        ("url = \"mqtts://b\"\nproxy = \"http://u@p\"", "a user goes into `proxy_username`"),
        ("url = \"mqtts://b\"\nproxy_username = \"u\"", "needs `proxy` beside it"),
        ("url = \"mqtt://localhost\"\nproxy = \"http://p\"", "localhost:1883 is this machine"),
        ("url = \"mqtts://b\"\ntopic_prefix = \"a/+/b\"", "6: mqtt.topic_prefix: `a/+/b` is invalid: `+` and `#`"),
        ("url = \"mqtts://b\"\ntopic_prefix = \"$aws/x\"", "the broker's own"),
        ("url = \"mqtts://b\"\ntopic_prefix = \"/a\"", "a level of it is empty"),
        ("url = \"mqtts://b\"\ntopic_prefix = \"\"", "leave the key out"),
        ("url = \"mqtts://b\"\ntopic_prefx = \"a\"", "did you mean `topic_prefix`?"),
    ] {
        let problems = read(lines).expect_err(lines);
        assert!(problems.len() == 1 && problems[0].contains(expected), "{lines}\n{problems:#?}\nis not {expected}");
    }
}

#[test]
fn proxy_prefix_and_names_are_read() {
    let mqtt = read(
        "url = \"mqtts://b:443\"\nserver_name = \"real.example\"\nalpn = [\"x-amzn-mqtt-ca\"]\nproxy = \"http://proxy.plant:8080/\"\n\
         proxy_username = \"p\"\nproxy_password_file = \"SECRET\"\ntopic_prefix = \"tenant/7/\"",
    )
    .expect("valid");
    let tls = mqtt.tls.expect("tls");
    assert_eq!((tls.server_name.as_deref(), tls.alpn), (Some("real.example"), vec!["x-amzn-mqtt-ca".to_owned()]));
    let proxy = mqtt.proxy.expect("proxy");
    assert_eq!((proxy.host.as_str(), proxy.port, proxy.username.as_deref()), ("proxy.plant", 8080, Some("p")));
    assert_eq!(mqtt.topic_prefix, "tenant/7/");
    assert_eq!(read("url = \"mqtts://b\"\ntopic_prefix = \"a\"").expect("valid").topic_prefix, "a/");
}

#[test]
fn proxy_cannot_be_set_remotely_because_it_sees_its_password() {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("c.toml");
    fs::write(&file, "[device]\nsite = \"s\"\nid = \"d\"\n[mqtt]\nurl = \"mqtts://b\"\n").expect("write");
    let config = Config::local(Some(&file)).expect("valid");
    let problems = config.with_remote(Some("[mqtt]\nproxy = \"http://thief.example\"\n")).expect_err("refused");
    assert!(problems[0].to_string().contains("mqtt.proxy: cannot be set remotely"), "{problems:?}");
    assert!(config.with_remote(Some("[mqtt]\nurl = [\"mqtts://b\", \"wss://c\"]\n")).is_ok());
}
