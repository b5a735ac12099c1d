//! How a broker is reached: all addresses of its name, a proxy, TLS, a WebSocket. What comes out carries MQTT.

use std::{io, net::SocketAddr, os::fd::AsRawFd, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use rumqttc::v5::mqttbytes::v5::Login;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{
    Failed, reason,
    session::{Carried, Carrier},
    tls, ws,
};
use crate::{
    config::{Broker, Mqtt, Proxy, host_and_port, secret},
    host::sys,
    limits,
};

/// What is read from files for one connection, so that what was renewed is used.
pub struct Papers {
    tls: Option<Arc<ClientConfig>>,
    /// User and password for the broker.
    pub login: Option<Login>,
    /// `Proxy-Authorization`.
    proxy: Option<String>,
}

impl Papers {
    /// Reads them on a thread of its own: a disk may take its time, and the system's authorities are many.
    ///
    /// # Errors
    /// A file cannot be read or used; the text names it.
    pub async fn read(mqtt: &Mqtt, broker: &Broker) -> Result<Self, String> {
        let (mqtt, secure) = (mqtt.clone(), broker.secure);
        let read = tokio::task::spawn_blocking(move || Self::read_now(&mqtt, secure)).await;
        read.map_err(|why| format!("read the files for the connection: {why}"))?
    }

    fn read_now(mqtt: &Mqtt, secure: bool) -> Result<Self, String> {
        let password = |file: &Option<_>| file.as_deref().map(secret).transpose();
        let login = match (&mqtt.username, password(&mqtt.password_file)?) {
            (None, None) => None,
            (user, password) => Some(Login::new(user.clone().unwrap_or_default(), password.unwrap_or_default())),
        };
        let tls = match mqtt.tls.as_ref().filter(|_| secure) {
            Some(tls) => Some(Arc::new(tls::config(tls)?)),
            None => None,
        };
        let proxy = match mqtt.proxy.as_ref().and_then(|proxy| Some((proxy.username.as_ref()?, &proxy.password_file))) {
            Some((user, file)) => Some(STANDARD.encode(format!("{user}:{}", password(file)?.unwrap_or_default()))),
            None => None,
        };
        Ok(Self { tls, login, proxy })
    }
}

/// Connects; ready for CONNECT.
pub(super) async fn dial(broker: &Broker, mqtt: &Mqtt, papers: &Papers) -> Result<Carried, Failed> {
    let mut io: Box<dyn Carrier> = match &mqtt.proxy {
        None => Box::new(tcp(&broker.host, broker.port).await?),
        Some(proxy) => {
            let mut tcp = tcp(&proxy.host, proxy.port).await?;
            let through = through(&mut tcp, broker, proxy, papers.proxy.as_deref()).await;
            through.map_err(|why| {
                Failed::broker(format!("the proxy {}: {why}", host_and_port(&proxy.host, proxy.port)))
            })?;
            Box::new(tcp)
        }
    };
    if let Some(config) = &papers.tls {
        let name = mqtt.tls.as_ref().and_then(|tls| tls.server_name.as_ref()).unwrap_or(&broker.host);
        let server = ServerName::try_from(name.clone())
            .map_err(|_| Failed::broker(format!("`{name}` is no name that a certificate can have")))?;
        let connected = TlsConnector::from(config.clone()).connect(server, io).await;
        io = Box::new(
            connected.map_err(|why| Failed::broker(tls::words(&why, name).unwrap_or_else(|| handshake(&why))))?,
        );
    }
    let Some(path) = &broker.path else { return Ok(Carried { io, frames: None }) };
    upgrade(&mut io, broker, path).await.map_err(|why| Failed::broker(format!("WebSocket: {why}")))?;
    Ok(Carried { io, frames: Some(ws::Frames::default()) })
}

fn handshake(why: &io::Error) -> String {
    match why.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the broker closed the connection during the TLS handshake and gave no reason: likely the port is not for TLS".into()
        }
        _ => format!("TLS handshake: {why}").to_lowercase(),
    }
}

/// All addresses of a name in the resolver's order, until one answers.
async fn tcp(host: &str, port: u16) -> Result<TcpStream, Failed> {
    let found = lookup_host((host, port)).await;
    let found = found.map_err(|why| Failed::path(format!("the name {host} cannot be looked up: {why}")))?;
    let addresses: Vec<SocketAddr> = found.take(limits::ADDRESSES).collect();
    first_that_answers(host, &addresses).await
}

async fn first_that_answers(host: &str, addresses: &[SocketAddr]) -> Result<TcpStream, Failed> {
    let each = (limits::CONNECT / (addresses.len() as u32 + 1)).max(limits::CONNECT_ADDRESS);
    let (mut whys, mut local) = (Vec::new(), true);
    for address in addresses {
        let why = match timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                // An error of these leaves a connection that is only slower.
                let _ = tcp.set_nodelay(true);
                sys::limit_unsent(tcp.as_raw_fd(), limits::UNSENT_BYTES);
                return Ok(tcp);
            }
            Ok(Err(why)) => {
                local &= is_path(&why);
                why.to_string().to_lowercase()
            }
            Err(_) => {
                local = false;
                "no answer in time".into()
            }
        };
        whys.push(if addresses.len() > 1 { format!("{address}: {why}") } else { why });
    }
    let why = match whys.as_slice() {
        [] => format!("the name {host} has no address"),
        [one] => one.clone(),
        all => format!("none of the {} addresses of {host} answers: {}", all.len(), all.join("; ")),
    };
    Err(if local { Failed::path(why) } else { Failed::broker(why) })
}

/// This device's own network is missing. A host that does not answer (no route to it) may be the broker's own failure, which all
/// its devices see.
fn is_path(why: &io::Error) -> bool {
    use io::ErrorKind as Io;
    [Io::NetworkUnreachable, Io::NetworkDown, Io::AddrNotAvailable].contains(&why.kind())
}

/// Asks the proxy for the broker (CONNECT).
async fn through(tcp: &mut TcpStream, broker: &Broker, proxy: &Proxy, login: Option<&str>) -> Result<(), String> {
    let mut ask = format!("CONNECT {broker} HTTP/1.1\r\nHost: {broker}\r\n");
    if let Some(login) = login {
        ask.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
    }
    ask.push_str("\r\n");
    tcp.write_all(ask.as_bytes()).await.map_err(|why| why.to_string())?;
    let head = head(tcp).await?;
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1).and_then(|code| code.parse().ok()) {
        Some(200..=299) => Ok(()),
        Some(407) if proxy.username.is_none() => {
            Err("it demands a user: set `mqtt.proxy_username` and `mqtt.proxy_password_file`".into())
        }
        Some(407) => Err("it does not accept `mqtt.proxy_username` with its password".into()),
        Some(403) => {
            Err(format!("it forbids {broker} (`{}`): its rules must allow that host and port", reason::short(status)))
        }
        _ => Err(format!("it does not connect to {broker}: it answers `{}`", reason::short(status))),
    }
}

async fn upgrade(io: &mut Box<dyn Carrier>, broker: &Broker, path: &str) -> Result<(), String> {
    let (ask, key) = ws::request(&broker.to_string(), path);
    io.write_all(ask.as_bytes()).await.map_err(|why| why.to_string())?;
    io.flush().await.map_err(|why| why.to_string())?;
    ws::agreed(&head(io).await?, &key)
}

/// The head of an HTTP response, byte by byte: what follows it is not ours to take. A server says nothing before it is asked, so
/// these are few.
async fn head(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<String, String> {
    let mut head = BytesMut::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= limits::HTTP_HEAD_BYTES {
            return Err("its answer is no HTTP".into());
        }
        match io.read_u8().await {
            Ok(byte) => head.extend_from_slice(&[byte]),
            Err(why) if why.kind() == io::ErrorKind::UnexpectedEof && head.is_empty() => {
                return Err("it closed the connection without an answer".into());
            }
            Err(why) => return Err(why.to_string()),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Tls;

    fn broker(port: u16) -> Broker {
        Broker { host: "broker.example".into(), port, secure: false, path: None }
    }

    /// A listener that answers once with this, and what it was asked.
    async fn answering(answer: &'static [u8]) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let port = listener.local_addr().expect("address").port();
        let asked = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.expect("connection");
            let asked = head(&mut tcp).await.expect("head");
            tcp.write_all(answer).await.expect("answer");
            asked
        });
        (port, asked)
    }

    #[tokio::test]
    async fn a_proxy_is_asked_for_the_broker_and_its_refusal_says_what_to_set() {
        for (answer, login, expected) in [
            (&b"HTTP/1.1 200 Connection established\r\n\r\n"[..], Some("dTpw"), None),
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", None, Some("`mqtt.proxy_username`")),
            (b"HTTP/1.0 403 Forbidden\r\n\r\n", None, Some("forbids broker.example:8883")),
            (b"SSH-2.0\r\n\r\n", None, Some("answers `SSH-2.0`")),
            (b"", None, Some("without an answer")),
        ] {
            let (port, asked) = answering(answer).await;
            let proxy = Proxy { host: "127.0.0.1".into(), port, username: None, password_file: None };
            let mut tcp = tcp("127.0.0.1", port).await.unwrap_or_else(|failed| panic!("{}", failed.why));
            let done = through(&mut tcp, &broker(8883), &proxy, login).await;
            let asked = asked.await.expect("asked");
            assert!(
                asked.starts_with("CONNECT broker.example:8883 HTTP/1.1\r\nHost: broker.example:8883\r\n"),
                "{asked}"
            );
            assert_eq!(asked.contains("Proxy-Authorization: Basic dTpw"), login.is_some());
            match expected {
                None => assert_eq!(done, Ok(())),
                Some(part) => assert!(done.as_ref().is_err_and(|why| why.contains(part)), "{done:?}"),
            }
        }
    }

    /// Of an authority that signed nothing.
    const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\n\
         MIIBbzCCARWgAwIBAgIUECJDi2CbsUc82z0kiltyDQswK0kwCgYIKoZIzj0EAwIw\n\
         DDEKMAgGA1UEAwwBYTAgFw0yNjExMjcxMTEwMjlaGA8yMTI2MTEwMzExMTAyOVow\n\
         DDEKMAgGA1UEAwwBYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMg5U3jZIT4l\n\
         /5XJnNx84KiIN1kNBJDeB5TCjCGAvrNYFfpvzA44/1komfY8MYVl5eETmXbMXhwP\n\
         atPiSOtKY52jUzBRMB0GA1UdDgQWBBRYEBVk3BVCAnGrZPS2Pgpivoi71DAfBgNV\n\
         HSMEGDAWgBRYEBVk3BVCAnGrZPS2Pgpivoi71DAPBgNVHRMBAf8EBTADAQH/MAoG\n\
         CCqGSM49BAMCA0gAMEUCIQCR9EJu3LtTECbfCD8kh/VTrXi4J2VjrdunsSGAc/Od\n\
         egIgHae5MtWiXzW3WbAHs6Mkl/ytyABnaaH6KwP7QWIGYHU=\n\
         -----END CERTIFICATE-----\n";

    #[tokio::test]
    async fn handshake_asks_for_the_name_and_the_protocol_that_are_configured() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), AUTHORITY).expect("write");
        let hello = async |server_name: Option<&str>| {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
            let port = listener.local_addr().expect("address").port();
            let tls = Tls {
                ca_file: Some(file.path().to_owned()),
                client: None,
                server_name: server_name.map(str::to_owned),
                alpn: vec!["x-amzn-mqtt-ca".into()],
            };
            let papers = Papers { tls: Some(Arc::new(tls::config(&tls).expect("valid"))), login: None, proxy: None };
            let mqtt = Mqtt { tls: Some(tls), ..reason::tests::mqtt() };
            let broker = Broker { host: "localhost".into(), secure: true, ..broker(port) };
            let read = async {
                let (mut tcp, _) = listener.accept().await.expect("connection");
                let mut bytes = vec![0; 4096];
                let n = tcp.read(&mut bytes).await.expect("read");
                String::from_utf8_lossy(&bytes[..n]).into_owned()
            };
            tokio::join!(read, dial(&broker, &mqtt, &papers)).0
        };
        let own = hello(None).await;
        assert!(own.contains("localhost") && own.contains("x-amzn-mqtt-ca"), "{own:?}");
        let other = hello(Some("broker.example")).await;
        assert!(other.contains("broker.example") && !other.contains("localhost"), "{other:?}");
    }

    #[tokio::test]
    async fn all_addresses_of_a_name_are_tried_and_each_failure_is_named() {
        let here = || async { tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port") };
        let (open, closed, also_closed) = (here().await, here().await, here().await);
        let [open_at, closed_at, also_at] = [&open, &closed, &also_closed].map(|l| l.local_addr().expect("address"));
        drop((closed, also_closed));
        let tcp = first_that_answers("b.example", &[closed_at, open_at])
            .await
            .unwrap_or_else(|failed| panic!("{}", failed.why));
        assert_eq!(tcp.peer_addr().expect("peer"), open_at);
        let failed = first_that_answers("b.example", &[closed_at, also_at]).await.expect_err("none");
        let start = format!("none of the 2 addresses of b.example answers: {closed_at}: connection refused");
        assert!(failed.why.starts_with(&start) && failed.why.contains(&also_at.to_string()), "{}", failed.why);
        let none = first_that_answers("b.example", &[]).await.expect_err("none");
        assert_eq!(none.why, "the name b.example has no address");
    }

    #[tokio::test]
    async fn a_refused_connection_is_the_brokers_and_a_name_without_an_address_the_paths() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
        let port = listener.local_addr().expect("address").port();
        drop(listener);
        let refused = tcp("127.0.0.1", port).await.expect_err("refused");
        assert!(refused.why.starts_with("connection refused") && refused.cause == super::super::backoff::Cause::Broker);
        let unknown = tcp("no-such-name.invalid", 1).await.expect_err("unknown");
        assert!(unknown.why.contains("cannot be looked up") && unknown.cause == super::super::backoff::Cause::Path);
    }
}
