//! The web page: a small HTTP server, streams of events for each open page, and the door for what was signed elsewhere. Pages pull:
//! each has its own mark of what it has seen, so a slow one gets fewer and larger updates and delays no other.

mod guard;
mod pages;
mod scores;
mod view;

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context as Poller, Poll},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    header, service,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use kentledge::{
    cli::say,
    error::{Context, Fatal},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};

use self::{
    guard::{Asked, Guard, Refused},
    scores::Scores,
};
use crate::{
    broker::{Heard, Line},
    heard::{Asks, Shared, now_ms},
    limits, send, table,
};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// File with the token that pages have to give; needed where other machines can reach the address
    #[arg(long)]
    token_file: Option<PathBuf>,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What all connections share.
#[derive(Clone)]
struct Hub {
    shared: Shared,
    line: Line,
    scores: Arc<Mutex<Scores>>,
    pages: Arc<AtomicUsize>,
    guard: Arc<Guard>,
    prefix: Arc<str>,
}

impl Hub {
    fn scores(&self) -> std::sync::MutexGuard<'_, Scores> {
        self.scores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until the program is stopped.
///
/// # Errors
/// The address cannot be used, the token's file cannot be read, or the first connection to the broker fails.
pub async fn serve(args: &Args, whom: &crate::broker::Whom) -> Result<(), Fatal> {
    let token = match &args.token_file {
        Some(file) => Some(std::fs::read_to_string(file).context(format!("read {}", file.display()))?),
        None => None,
    };
    let guard = Guard::new(token.as_deref(), args.listen).map_err(Fatal::failed)?;
    let listener = TcpListener::bind(args.listen).await.context(format!("listen on {}", args.listen))?;
    let mqtt = whom.mqtt()?;
    let prefix: Arc<str> = mqtt.topic_prefix.as_str().into();
    let scores: Arc<Mutex<Scores>> = Arc::default();
    let (theirs, below) = (scores.clone(), prefix.clone());
    let also = move |heard: &Heard<'_>| {
        if let Heard::Message { topic, payload, .. } = heard
            && topic.contains("/up/p/")
        {
            theirs.lock().unwrap_or_else(PoisonError::into_inner).on(topic, &below, payload, now_ms());
        }
    };
    let act = |shared, line| async move {
        let at = listener.local_addr().context("read the address")?;
        say(&format!("console: http://{at}/"))?;
        let hub = Hub { shared, line, scores, pages: Arc::default(), guard: Arc::new(guard), prefix };
        accept(&listener, &hub).await
    };
    crate::heard::with_also(whom, mqtt, Asks::Devices, act, also).await
}

async fn accept(listener: &TcpListener, hub: &Hub) -> Result<(), Fatal> {
    let room = Arc::new(Semaphore::new(limits::CONNECTIONS));
    loop {
        // Further clients wait in the kernel's queue.
        let place = room.clone().acquire_owned().await.context("count connections")?;
        let Ok((stream, _)) = listener.accept().await else {
            // Too many open files: some will be closed.
            tokio::time::sleep(limits::PUSH).await;
            continue;
        };
        let hub = hub.clone();
        tokio::spawn(async move {
            let answer = service::service_fn(move |request| {
                let hub = hub.clone();
                async move { Ok::<_, Infallible>(route(&hub, request).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(limits::HEAD);
            // A client that went away is no error of ours.
            let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            drop(place);
        });
    }
}

async fn route(hub: &Hub, request: Request<Incoming>) -> Answer {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let asked = Asked {
        host: text(header::HOST),
        origin: text(header::ORIGIN),
        cookie: text(header::COOKIE),
        authorization: text(header::AUTHORIZATION),
        content: text(header::CONTENT_TYPE),
        post: request.method() != Method::GET,
    };
    if let Some(token) = query(&request, "token")
        && hub.guard.is_token(&token)
    {
        return signed_in(&token);
    }
    match hub.guard.admit(asked) {
        Ok(()) => {}
        Err(Refused::Token) if request.uri().path() == "/" => {
            return asset(StatusCode::UNAUTHORIZED, HTML, pages::LOGIN);
        }
        Err(Refused::Token) => return failed(StatusCode::UNAUTHORIZED, "the token is missing or wrong"),
        Err(Refused::Place(why)) => return failed(StatusCode::FORBIDDEN, why),
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => asset(StatusCode::OK, HTML, pages::INDEX),
        (&Method::GET, "/style.css") => asset(StatusCode::OK, "text/css; charset=utf-8", pages::STYLE),
        (&Method::GET, "/events") => match query(&request, "device") {
            Some(device) => pages::device(hub, device),
            None => pages::fleet(hub),
        },
        (&Method::GET, "/api/devices") => {
            let inner = hub.shared.lock();
            let all: Vec<Value> = inner.fleet.devices.iter().map(|(id, device)| table::json(id, device)).collect();
            answer(StatusCode::OK, &Value::Array(all))
        }
        (&Method::POST, "/api/inner") => with_body(request, |asked| async move { inner(hub, &asked) }).await,
        (&Method::POST, "/api/signed") => with_body(request, |asked| publish(hub, asked)).await,
        (&Method::GET, path) => match pages::PARTS.iter().find(|(name, _)| *name == path) {
            Some((_, text)) => asset(StatusCode::OK, "text/javascript; charset=utf-8", text),
            None => failed(StatusCode::NOT_FOUND, "there is no such page"),
        },
        _ => failed(StatusCode::NOT_FOUND, "there is no such page"),
    }
}

/// The text to sign of a command.
fn inner(hub: &Hub, asked: &Value) -> Result<Value, String> {
    let to = asked["to"].as_str().unwrap_or("");
    let nonce = hub.shared.lock().fleet.devices.get(to).map(|device| device.nonce.clone()).unwrap_or_default();
    let kind = asked["type"].as_str().unwrap_or("");
    let issuer = asked["issuer"].as_str().unwrap_or("");
    let args = if asked["args"].is_null() { json!({}) } else { asked["args"].clone() };
    let made = send::inner(to, kind, &args, issuer, &nonce, limits::COMMAND_S, now_ms())?;
    Ok(json!({"id": made.id, "signed": made.text, "topic": made.topic}))
}

/// Publishes what was signed; the device checks the signature.
async fn publish(hub: &Hub, asked: Value) -> Result<Value, String> {
    let (signed, sig) = (asked["signed"].as_str().unwrap_or(""), asked["sig"].as_str().unwrap_or(""));
    let parcel = send::parcel(signed, sig)?;
    hub.line.publish(&format!("{}{}", hub.prefix, parcel.topic), parcel.payload, parcel.retain).await?;
    Ok(json!({"topic": parcel.topic, "id": parcel.id}))
}

async fn with_body<F: Future<Output = Result<Value, String>>>(
    request: Request<Incoming>,
    act: impl FnOnce(Value) -> F,
) -> Answer {
    let body = Limited::new(request.into_body(), limits::REQUEST_BYTES).collect();
    let read = match tokio::time::timeout(limits::HEAD, body).await {
        Ok(Ok(body)) => serde_json::from_slice::<Value>(&body.to_bytes()).map_err(|why| why.to_string()),
        Ok(Err(why)) => Err(why.to_string()),
        Err(_) => Err("it did not come in time".into()),
    };
    let done = match read {
        Ok(value) => act(value).await,
        Err(why) => Err(format!("read the request: {why}")),
    };
    match done {
        Ok(value) => answer(StatusCode::OK, &value),
        Err(why) => failed(StatusCode::BAD_REQUEST, &why),
    }
}

/// A member of the query, decoded.
fn query(request: &Request<Incoming>, name: &str) -> Option<String> {
    let pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
    let text = pairs.filter(|(key, _)| *key == name).map(|(_, text)| text).next()?;
    Some(decoded(text))
}

fn decoded(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        match byte {
            b'%' => match (hex(bytes.next()), hex(bytes.next())) {
                (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
                _ => return String::new(),
            },
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).unwrap_or_default()
}

const HTML: &str = "text/html; charset=utf-8";

/// Nothing of another place is loaded, no other page may frame it, nothing is kept where it could be old.
const HEADERS: [(&str, &str); 5] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; \
         frame-ancestors 'none'; base-uri 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-store"),
    ("cross-origin-resource-policy", "same-origin"),
];

fn head(code: StatusCode, kind: &str) -> hyper::http::response::Builder {
    let head = Response::builder().status(code).header(header::CONTENT_TYPE, kind);
    HEADERS.into_iter().fold(head, |head, (name, value)| head.header(name, value))
}

fn whole(head: hyper::http::response::Builder, body: impl Into<Bytes>) -> Answer {
    head.body(Full::new(body.into()).boxed_unsync()).unwrap_or_default()
}

fn asset(code: StatusCode, kind: &str, text: &'static str) -> Answer {
    whole(head(code, kind), text)
}

fn answer(code: StatusCode, value: &Value) -> Answer {
    whole(head(code, "application/json"), value.to_string())
}

fn failed(code: StatusCode, why: &str) -> Answer {
    answer(code, &json!({"error": why}))
}

fn signed_in(token: &str) -> Answer {
    let cookie = format!("kentledge={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000");
    let head = head(StatusCode::SEE_OTHER, HTML).header(header::SET_COOKIE, cookie).header(header::LOCATION, "/");
    whole(head, "")
}

/// A stream of server-sent events.
struct Events(mpsc::Receiver<Bytes>);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, poller: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(poller).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Opens a stream; `None`: too many pages are open.
fn stream(hub: &Hub) -> Option<(mpsc::Sender<Bytes>, Answer)> {
    if hub.pages.fetch_add(1, Ordering::Relaxed) >= limits::PAGES {
        hub.pages.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let (send, events) = mpsc::channel(4);
    let head = head(StatusCode::OK, "text/event-stream");
    Some((send, head.body(Events(events).boxed_unsync()).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_a_wrong_one_is_empty() {
        assert_eq!(decoded("plant%2Fpump-1"), "plant/pump-1");
        assert_eq!((decoded("a%2"), decoded("%ff"), decoded("a+b")), (String::new(), String::new(), "a b".into()));
    }
}
