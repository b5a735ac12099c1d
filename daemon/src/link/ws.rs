//! MQTT inside a WebSocket (RFC 6455), the client's side: frames around bytes (pure), and the handshake's texts (pure). Ours,
//! because it is this file or 11 more crates in the field binary (rumqttc's features `websocket` and `proxy`).
//!
//! ```text
//! frame: FIN, opcode: u8 │ MASK, length: u8 (126: u16be, 127: u64be follow) │ mask: 4 bytes, from the client │ payload
//! ```
//!
//! A packet of ours is one binary frame. What comes is a stream of bytes, wherever frames begin.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, BufMut, BytesMut};
use ring::digest;

/// What RFC 6455 adds to the key before it is hashed.
const SALT: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Why no more frames come.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unframed {
    /// The other side ended it in order, with its code and text if it gave them.
    #[error("the WebSocket was closed{0}")]
    Closed(String),
    /// It does not keep to the protocol.
    #[error("{0}")]
    Malformed(String),
}

impl From<&str> for Unframed {
    fn from(why: &str) -> Self {
        Self::Malformed(why.into())
    }
}

/// Frames in both directions.
#[derive(Debug, Default)]
pub struct Frames {
    /// Bytes of the current data frame that have not come yet.
    left: u64,
}

impl Frames {
    /// Puts one binary frame around a packet.
    pub fn wrap(&self, packet: &[u8], out: &mut BytesMut) {
        frame(BINARY, packet, out);
    }

    /// Says that this side ends it in order.
    pub fn close(&self, out: &mut BytesMut) {
        frame(CLOSE, &1000u16.to_be_bytes(), out);
    }

    /// Takes the payload out of what came; `answer` gets the pong that a ping asks for.
    ///
    /// # Errors
    /// The other side closed, or does not keep to the protocol.
    pub fn unwrap(
        &mut self,
        raw: &mut BytesMut,
        payload: &mut BytesMut,
        answer: &mut BytesMut,
    ) -> Result<(), Unframed> {
        loop {
            if self.left > 0 {
                let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(raw.len());
                payload.extend_from_slice(&raw.split_to(n));
                self.left -= n as u64;
                if self.left > 0 {
                    return Ok(());
                }
            }
            let Some((opcode, length, head)) = header(raw)? else { return Ok(()) };
            if opcode < CLOSE {
                if opcode == 1 {
                    return Err("a text frame: MQTT comes in binary frames".into());
                }
                raw.advance(head);
                self.left = length;
                continue;
            }
            let Some(whole) = usize::try_from(length).ok().and_then(|n| head.checked_add(n)) else { return Ok(()) };
            if length > 125 {
                return Err("a control frame of more than 125 bytes".into());
            }
            if raw.len() < whole {
                return Ok(());
            }
            let content = raw.split_to(whole).split_off(head);
            match opcode {
                PING => frame(PONG, &content, answer),
                PONG => {}
                CLOSE => return Err(Unframed::Closed(closed(&content))),
                other => return Err(Unframed::Malformed(format!("a frame with the unknown opcode {other}"))),
            }
        }
    }
}

/// Opcode, length and bytes of the head, once it is whole.
fn header(raw: &[u8]) -> Result<Option<(u8, u64, usize)>, Unframed> {
    let [first, second, ..] = *raw else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err("a frame of an extension that was not asked for".into());
    }
    if second & 0x80 != 0 {
        return Err("a masked frame: a server must not mask".into());
    }
    let long = |n: usize| raw.get(2..2 + n).map(|bytes| bytes.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)));
    Ok(match second {
        126 => long(2).map(|n| (first & 15, n, 4)),
        127 => long(8).map(|n| (first & 15, n, 10)),
        n => Some((first & 15, u64::from(n), 2)),
    })
}

/// A whole frame, masked as a client must.
fn frame(opcode: u8, content: &[u8], out: &mut BytesMut) {
    out.put_u8(0x80 | opcode);
    match content.len() {
        n @ 0..126 => out.put_u8(0x80 | n as u8),
        n @ 126..0x1_0000 => {
            out.put_u8(0x80 | 126);
            out.put_u16(n as u16);
        }
        n => {
            out.put_u8(0x80 | 127);
            out.put_u64(n as u64);
        }
    }
    let mask = fastrand::u32(..).to_be_bytes();
    out.put_slice(&mask);
    out.extend(content.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// What follows the words that it was closed: code and text.
fn closed(content: &[u8]) -> String {
    match content {
        [a, b, text @ ..] => {
            let text = String::from_utf8_lossy(text);
            format!(" with code {} {text}", u16::from_be_bytes([*a, *b])).trim_end().to_owned()
        }
        _ => String::new(),
    }
}

/// The request of the handshake, and the key in it.
pub fn request(host: &str, path: &str) -> (String, String) {
    let key = STANDARD.encode(std::array::from_fn::<u8, 16, _>(|_| fastrand::u8(..)));
    let text = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    );
    (text, key)
}

/// Whether the response's head agrees.
///
/// # Errors
/// It does not; why.
pub fn agreed(head: &str, key: &str) -> Result<(), String> {
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("101") {
        return Err(format!(
            "the server does not take WebSockets here: it answers `{status}`; check the path in `mqtt.url`"
        ));
    }
    let fields: Vec<(&str, &str)> = lines.filter_map(|line| line.split_once(':')).collect();
    let field = |name: &str| fields.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim());
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{SALT}").as_bytes());
    if field("Sec-WebSocket-Accept") != Some(STANDARD.encode(hash).as_str()) {
        return Err(
            "the server's answer does not belong to our request: a proxy between may have stored an old one".into()
        );
    }
    match field("Sec-WebSocket-Protocol") {
        Some("mqtt") => Ok(()),
        other => Err(format!("the server does not speak MQTT in its WebSocket: it offers {other:?}, expected `mqtt`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server sends: not masked.
    fn served(opcode: u8, fin: bool, content: &[u8]) -> Vec<u8> {
        let mut out = vec![opcode | if fin { 0x80 } else { 0 }];
        match content.len() {
            n @ 0..126 => out.push(n as u8),
            n @ 126..0x1_0000 => out.extend([&[126][..], &(n as u16).to_be_bytes()].concat()),
            n => out.extend([&[127][..], &(n as u64).to_be_bytes()].concat()),
        }
        out.extend(content);
        out
    }

    #[test]
    fn payload_is_the_same_wherever_frames_and_reads_begin() {
        let meant: Vec<u8> = (0..70_500u32).map(|i| i as u8).collect();
        let mut wire = Vec::new();
        for (i, part) in [&meant[..1], &meant[1..200], &meant[200..70_400], &meant[70_400..]].into_iter().enumerate() {
            wire.extend(served(if i == 0 { BINARY } else { 0 }, i == 3, part));
            wire.extend(served(PING, true, &[i as u8]));
        }
        for step in [1, 7, 4096, wire.len()] {
            let (mut frames, mut raw) = (Frames::default(), BytesMut::new());
            let (mut payload, mut answer) = (BytesMut::new(), BytesMut::new());
            for part in wire.chunks(step) {
                raw.extend_from_slice(part);
                frames.unwrap(&mut raw, &mut payload, &mut answer).expect("frames");
            }
            assert!(payload == meant && raw.is_empty(), "in steps of {step}");
            assert_eq!(answer.len(), 4 * (2 + 4 + 1), "each ping is answered");
        }
    }

    #[test]
    fn our_frames_are_masked_and_as_long_as_they_say() {
        for n in [0, 125, 126, 65_535, 65_536] {
            let (packet, mut out) = (vec![7; n], BytesMut::new());
            Frames::default().wrap(&packet, &mut out);
            assert_eq!(out[0], 0x82);
            let head = match n {
                0..126 => 2,
                126..0x1_0000 => 4,
                _ => 10,
            };
            assert!(out[1] & 0x80 > 0 && out.len() == head + 4 + n);
            let mask = out[head..head + 4].to_vec();
            let plain: Vec<u8> = out[head + 4..].iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m).collect();
            assert_eq!(plain, packet);
        }
    }

    #[test]
    fn a_server_that_closes_or_breaks_the_protocol_is_named() {
        let why = |bytes: &[u8]| {
            let mut raw = BytesMut::from(bytes);
            Frames::default().unwrap(&mut raw, &mut BytesMut::new(), &mut BytesMut::new()).err()
        };
        let text = |bytes: &[u8]| why(bytes).map(|why| why.to_string());
        let closed = served(CLOSE, true, b"\x03\xf0too large");
        assert_eq!(text(&closed).as_deref(), Some("the WebSocket was closed with code 1008 too large"));
        assert_eq!(why(&closed), Some(Unframed::Closed(" with code 1008 too large".into())));
        assert_eq!(text(&served(CLOSE, true, b"")).as_deref(), Some("the WebSocket was closed"));
        assert!(text(&served(1, true, b"text")).is_some_and(|why| why.contains("text frame")));
        assert!(text(&[0x82, 0x81, 0, 0, 0, 0, 0]).is_some_and(|why| why.contains("masked")));
        assert!(text(&[0xc2, 1, 0]).is_some_and(|why| why.contains("extension")));
        assert!(text(&served(PING, true, &[0; 126])).is_some_and(|why| why.contains("125")));
    }

    #[test]
    fn handshake_is_the_one_of_the_standard() {
        // RFC 6455, 1.3.
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let head = |status: &str, accept: &str, protocol: &str| {
            format!("HTTP/1.1 {status}\r\nupgrade: websocket\r\nSEC-WEBSOCKET-ACCEPT: {accept}\r\n{protocol}\r\n\r\n")
        };
        let (right, mqtt) = ("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "Sec-WebSocket-Protocol: mqtt");
        assert_eq!(agreed(&head("101 Switching Protocols", right, mqtt), key), Ok(()));
        for (head, part) in [
            (head("404 Not Found", right, mqtt), "404 Not Found"),
            (head("101 Switching Protocols", "AAAA", mqtt), "does not belong"),
            (head("101 Switching Protocols", right, "X: y"), "expected `mqtt`"),
            (String::new(), "answers ``"),
        ] {
            assert!(agreed(&head, key).is_err_and(|why| why.contains(part)), "{head}");
        }
        let (text, key) = request("broker.example:8884", "/mqtt?x=1");
        assert!(
            text.starts_with("GET /mqtt?x=1 HTTP/1.1\r\nHost: broker.example:8884\r\n") && text.ends_with("\r\n\r\n")
        );
        assert_eq!(STANDARD.decode(key).map(|key| key.len()), Ok(16));
    }
}
