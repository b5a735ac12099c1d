//! `[mqtt]`: the brokers of the device, and how they are reached.

use std::{fmt, net::IpAddr, path::PathBuf};

use super::{
    SettingError,
    paths::Paths,
    problem::nearest,
    raw::{Table, Value},
};
use crate::limits;

/// `[mqtt]`
#[derive(Debug, Clone, PartialEq)]
pub struct Mqtt {
    /// Tried in this order; at least one.
    pub brokers: Vec<Broker>,
    /// Files and names for TLS; `None`: no broker of the list uses it.
    pub tls: Option<Tls>,
    /// The HTTP proxy in front of them.
    pub proxy: Option<Proxy>,
    /// User name.
    pub username: Option<String>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// Keep-alive, s.
    pub keep_alive_s: u64,
    /// CBOR instead of JSON.
    pub cbor: bool,
    /// Client id.
    pub client_id: String,
    /// Before each topic: empty, or it ends with `/`.
    pub topic_prefix: String,
}

/// One address of `mqtt.url`.
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS.
    pub secure: bool,
    /// MQTT inside a WebSocket: the path that is asked for.
    pub path: Option<String>,
}

impl Broker {
    /// `SCHEME://HOST[:PORT][/PATH]`; plain text only to this machine.
    ///
    /// # Errors
    /// The address is invalid; in words.
    pub fn parse(text: &str) -> Result<Self, SettingError> {
        let broker = broker(text)?;
        match broker.secure || is_loopback(&broker.host) {
            true => Ok(broker),
            false => Err(format!("{broker}: plain text is allowed to this machine only; use `mqtts://`").into()),
        }
    }
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", host_and_port(&self.host, self.port))
    }
}

/// TLS files, PEM, and what is said in the handshake.
#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// Certificates that may sign the broker's; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// The device's certificate chain and key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// The name that the broker's certificate must have, and that is asked for (SNI); `None`: the host.
    pub server_name: Option<String>,
    /// Protocols that are offered (ALPN).
    pub alpn: Vec<String>,
}

/// An HTTP proxy that is asked for a connection (CONNECT).
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User name, where the proxy demands one.
    pub username: Option<String>,
    /// File with its password.
    pub password_file: Option<PathBuf>,
}

/// `host:port`, with brackets around an IPv6 address.
pub fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The schemes of `mqtt.url`: word, TLS, WebSocket, default port.
const SCHEMES: [(&str, bool, bool, u16); 4] =
    [("mqtts", true, false, 8883), ("mqtt", false, false, 1883), ("wss", true, true, 443), ("ws", false, true, 80)];

/// Words that other programs use for them.
const ALIASES: [(&str, &str); 6] =
    [("ssl", "mqtts"), ("tls", "mqtts"), ("tcp", "mqtt"), ("mqtt+ssl", "mqtts"), ("https", "wss"), ("http", "ws")];

pub(super) fn mqtt(mut t: Table<'_>, paths: &Paths) -> Mqtt {
    let brokers = brokers(&mut t);
    let secure = brokers.iter().any(|broker| broker.secure);
    let open = brokers.iter().find(|broker| !broker.secure && !is_loopback(&broker.host));
    let allow_plaintext = t.bool("allow_plaintext").unwrap_or(false);
    if let Some(broker) = open.filter(|_| !allow_plaintext) {
        let with_tls = if broker.path.is_some() { "wss" } else { "mqtts" };
        t.problem(
            "url",
            format!(
                "{broker}: plain text is allowed to this machine only; use `{with_tls}://`, or set `allow_plaintext = true`"
            ),
        );
    }
    if open.is_some() && t.has("password_file") && t.is_remote("allow_plaintext") {
        t.problem(
            "allow_plaintext",
            "cannot be set remotely where there is a password: it would be sent in plain text",
        );
    }
    let tls = tls(&mut t, paths, secure);
    let username = t.str("username");
    if username.as_deref() == Some("") {
        t.problem("username", "is empty: leave the key out where the broker wants none");
    }
    let password_file = paths.secret(&mut t, "password_file");
    if t.node("qos").is_some() {
        let why = "cannot be set: every record is sent with QoS 1, because one that is sent with QoS 0 may be lost unseen; a \
                   broker that takes \
                   QoS 0 only says so, and gets it";
        t.problem("qos", why);
    }
    let mqtt = Mqtt {
        tls: secure.then_some(tls),
        proxy: proxy(&mut t, paths, &brokers),
        brokers,
        username,
        password_file,
        keep_alive_s: t.int("keep_alive_s", 5..=3600).map_or(limits::KEEP_ALIVE_S, |s| s as u64),
        cbor: t.word("payload", &[("json", false), ("cbor", true)]).unwrap_or(false),
        client_id: t.str("client_id").unwrap_or_default(),
        topic_prefix: topic_prefix(&mut t),
    };
    t.finish();
    mqtt
}

/// One text, or a list of them.
fn brokers(t: &mut Table<'_>) -> Vec<Broker> {
    let there = t.has("url");
    let texts = match t.node("url").map(|node| node.value) {
        Some(Value::List(_)) => t.strs("url"),
        Some(_) => t.str("url").map(|text| vec![text]),
        None => None,
    };
    let wrong = there && texts.is_none();
    let texts = texts.unwrap_or_default();
    if !there {
        t.problem("url", "is needed");
    } else if wrong {
        // It was reported as what it is.
    } else if texts.is_empty() {
        t.problem("url", "must name a broker: a text, or a list of texts that are tried in this order");
    } else if texts.len() > limits::BROKERS {
        t.problem("url", format!("{} brokers are too many: {} at most", texts.len(), limits::BROKERS));
    }
    let mut brokers: Vec<Broker> = Vec::new();
    for text in texts {
        match broker(&text) {
            Ok(broker) if brokers.contains(&broker) => t.problem("url", format!("`{text}` is there twice")),
            Ok(broker) => brokers.push(broker),
            Err(why) => t.problem("url", why),
        }
    }
    brokers
}

/// `SCHEME://HOST[:PORT][/PATH]`.
fn broker(text: &str) -> Result<Broker, String> {
    let must = "must be `mqtts://HOST[:PORT]`, or begin with `mqtt://`, `wss://` or `ws://`";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("{must}, not `{text}`"));
    };
    let Some((_, secure, ws, port)) = SCHEMES.into_iter().find(|(word, ..)| *word == scheme) else {
        let alias = ALIASES.iter().find(|(word, _)| *word == scheme).map(|(_, meant)| *meant);
        let near = alias.or_else(|| nearest(scheme, SCHEMES.iter().map(|(word, ..)| *word))).unwrap_or("mqtts");
        return Err(format!("{must}; `{scheme}://` is invalid: did you mean `{near}://`?"));
    };
    let (address, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if address.contains('@') {
        return Err("the address has a user name in it: write `username` and `password_file` instead".into());
    }
    if address.contains(',') {
        return Err(format!(
            "`{address}` holds several addresses: write a list, `url = [\"{scheme}://A\", \"{scheme}://B\"]`"
        ));
    }
    let (host, port) = host_port(address, port)
        .ok_or_else(|| format!("invalid address `{address}`: expected HOST or HOST:PORT, with a port of 1 to 65535"))?;
    match (ws, path) {
        (false, "" | "/") => Ok(Broker { host, port, secure, path: None }),
        (false, path) => Err(format!("`{path}` has no meaning here: only `wss://` and `ws://` have a path")),
        (true, path) if path.bytes().all(|b| b.is_ascii_graphic()) => {
            let path = if path.is_empty() { "/mqtt" } else { path };
            Ok(Broker { host, port, secure, path: Some(path.into()) })
        }
        (true, path) => Err(format!("`{path}` is no path: only printable ASCII without blanks")),
    }
}

fn tls(t: &mut Table<'_>, paths: &Paths, secure: bool) -> Tls {
    let ca_file = paths.file(t, "ca_file");
    let client = match (paths.file(t, "cert_file"), paths.file(t, "key_file")) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (cert, key) => {
            for (there, key, other) in [(&cert, "cert_file", "key_file"), (&key, "key_file", "cert_file")] {
                if there.is_some() && !t.has(other) {
                    t.problem(key, format!("needs `{other}` beside it"));
                }
            }
            None
        }
    };
    let server_name = t.str("server_name");
    if let Some(name) = &server_name
        && rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
    {
        t.problem("server_name", format!("`{name}` is no host name and no address"));
    }
    let alpn = t.strs("alpn").unwrap_or_default();
    if alpn.iter().any(|word| word.is_empty() || word.len() > 255) {
        t.problem("alpn", "each protocol has 1 to 255 bytes");
    }
    if !secure && (ca_file.is_some() || client.is_some()) {
        t.problem("url", "certificates are given, but `mqtt://` does not use them; write `mqtts://`");
    }
    for key in ["server_name", "alpn"] {
        if !secure && t.has(key) {
            t.problem(key, "works with TLS only: write `mqtts://` or `wss://`");
        }
    }
    Tls { ca_file, client, server_name, alpn }
}

/// The proxy sees its password in plain text, so no remote layer may name it.
fn proxy(t: &mut Table<'_>, paths: &Paths, brokers: &[Broker]) -> Option<Proxy> {
    t.only_local(&["proxy", "proxy_username", "proxy_password_file"]);
    let username = t.str("proxy_username");
    let password_file = paths.secret(t, "proxy_password_file");
    let Some(text) = t.str("proxy") else {
        for key in ["proxy_username", "proxy_password_file"] {
            if t.has(key) {
                t.problem(key, "needs `proxy` beside it");
            }
        }
        return None;
    };
    let address = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    let Some((host, port)) = address.filter(|address| !address.contains('@')).and_then(|a| host_port(a, 3128)) else {
        t.problem(
            "proxy",
            format!("`{text}` is invalid: expected `http://HOST[:PORT]`; a user goes into `proxy_username` and `proxy_password_file`"),
        );
        return None;
    };
    if let Some(broker) = brokers.iter().find(|broker| is_loopback(&broker.host) && !is_loopback(&host)) {
        t.problem("proxy", format!("{broker} is this machine: a proxy would look for it on its own"));
    }
    Some(Proxy { host, port, username, password_file })
}

/// Some brokers give each customer a subtree.
fn topic_prefix(t: &mut Table<'_>) -> String {
    let Some(text) = t.str("topic_prefix") else { return String::new() };
    let clean = text.trim_end_matches('/');
    let why = if clean.is_empty() {
        "it is empty: leave the key out"
    } else if clean.len() > limits::TOPIC_PREFIX_BYTES {
        "it is too long: 128 bytes at most"
    } else if clean.contains(['+', '#']) {
        "`+` and `#` are wildcards: no topic to publish to may have them"
    } else if clean.starts_with('$') {
        "topics that begin with `$` are the broker's own"
    } else if clean.chars().any(|c| c.is_control() || c.is_whitespace()) {
        "only printable characters without blanks"
    } else if clean.starts_with('/') || clean.contains("//") {
        "a level of it is empty"
    } else {
        return format!("{clean}/");
    };
    t.problem("topic_prefix", format!("`{text}` is invalid: {why}"));
    String::new()
}

fn host_port(text: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']')?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(default), |p| p.parse().ok().filter(|p| *p > 0))?;
    (!host.is_empty() && !host.contains(['/', '@', ' ', '?', '#'])).then(|| (host.to_owned(), port))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
#[path = "mqtt_tests.rs"]
mod tests;
