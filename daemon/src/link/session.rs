//! One MQTT 5 session over a connection: packets in, packets out. It owns the connection and its buffers and nothing else: which
//! acknowledgement belongs to what is `flight`'s, when to ping and when to give up is the link's.
//!
//! The packets are read and written by rumqttc's codec. Its event loop is not used: it hides its socket, drops the reason text of
//! a refusal, and clears what is in flight on its own terms.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use rumqttc::v5::mqttbytes::{
    Error as WireError,
    v5::{Disconnect, DisconnectReasonCode, Packet},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    error::LinkError,
    ws::{Frames, Unframed},
};
use crate::limits;

/// What a session runs over: TCP, or TLS over it, or over a proxy.
pub trait Carrier: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Carrier for T {}

/// A connection that is ready for MQTT.
pub struct Carried {
    /// The bytes.
    pub io: Box<dyn Carrier>,
    /// Where MQTT is inside a WebSocket.
    pub frames: Option<Frames>,
}

/// Why a session ended.
#[derive(Debug)]
pub enum Closed {
    /// The other side closed it.
    End,
    /// The connection broke.
    Io(io::Error),
    /// The WebSocket around MQTT was closed in order: what it said.
    WebSocket(String),
    /// The broker refused as MQTT 3 does, with that code.
    Mqtt3(u8),
    /// What came is not MQTT 5 as the codec knows it; with the reason code that it does not know, if that is it.
    Malformed(String, Option<u8>),
}

/// One session.
pub struct Session {
    io: Box<dyn Carrier>,
    frames: Option<Frames>,
    /// Bytes as they came, where frames are around them.
    raw: BytesMut,
    input: BytesMut,
    output: BytesMut,
    flushing: bool,
    chunk: Box<[u8]>,
    /// Larger packets end the session, bytes.
    most: u32,
}

impl Session {
    /// Begins with an empty buffer, and takes packets as large as a device offers to.
    pub fn new(carried: Carried) -> Self {
        Self::taking(carried, limits::PACKET_BYTES)
    }

    /// The same with packets of up to `most` bytes.
    pub fn taking(carried: Carried, most: u32) -> Self {
        Self {
            io: carried.io,
            frames: carried.frames,
            raw: BytesMut::new(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            flushing: false,
            chunk: vec![0; limits::READ_CHUNK].into(),
            most,
        }
    }

    /// Adds a packet to what is to be written.
    ///
    /// # Errors
    /// The codec cannot write it: a topic, for instance, of more than 64 KiB.
    pub fn push(&mut self, packet: &Packet) -> Result<(), LinkError> {
        match &mut self.frames {
            None => packet.write(&mut self.output, None).map_err(|why| why.to_string())?,
            Some(frames) => {
                let mut whole = BytesMut::with_capacity(packet.size());
                let n = packet.write(&mut whole, None).map_err(|why| why.to_string())?;
                frames.wrap(&whole, &mut self.output);
                if matches!(packet, Packet::Disconnect(_)) {
                    frames.close(&mut self.output);
                }
                n
            }
        };
        self.flushing = true;
        Ok(())
    }

    /// All that was pushed is with the kernel: what is urgent waits behind nothing here.
    pub fn is_idle(&self) -> bool {
        self.output.is_empty() && !self.flushing
    }

    /// The next packet that comes; `None`: all that was pushed is handed to the kernel. May be dropped at any time without a
    /// loss.
    ///
    /// # Errors
    /// The session ended.
    pub async fn next(&mut self) -> Result<Option<Packet>, Closed> {
        loop {
            if let Some(packet) = self.packet()? {
                return Ok(Some(packet));
            }
            let wrote = std::future::poll_fn(|cx| self.poll(cx)).await?;
            if wrote {
                return Ok(None);
            }
        }
    }

    /// The next whole packet of what has come.
    fn packet(&mut self) -> Result<Option<Packet>, Closed> {
        let whole = split(&mut self.input, self.most).map_err(|why| Closed::Malformed(why, None))?;
        whole.map(|(head, whole)| parse(head, whole)).transpose()
    }

    /// Writes and reads what can be. `true`: all is written.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Closed>> {
        match self.poll_write(cx) {
            Poll::Ready(Ok(())) if std::mem::take(&mut self.flushing) => return Poll::Ready(Ok(true)),
            Poll::Ready(Err(why)) => {
                // What the broker said before it closed is worth more than the error of writing to it.
                let read = matches!(self.poll_read(cx), Poll::Ready(Ok(())));
                return Poll::Ready(if read { Ok(false) } else { Err(Closed::Io(why)) });
            }
            _ => {}
        }
        ready!(self.poll_read(cx))?;
        Poll::Ready(Ok(false))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.flushing {
            return Poll::Ready(Ok(()));
        }
        while !self.output.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.output))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.output.advance(n),
            }
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Closed>> {
        let mut chunk = ReadBuf::new(&mut self.chunk);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut chunk)).map_err(Closed::Io)?;
        let came = chunk.filled();
        if came.is_empty() {
            return Poll::Ready(Err(Closed::End));
        }
        match &mut self.frames {
            None => self.input.extend_from_slice(came),
            Some(frames) => {
                self.raw.extend_from_slice(came);
                let before = self.output.len();
                let unwrapped = frames.unwrap(&mut self.raw, &mut self.input, &mut self.output);
                unwrapped.map_err(|why| match why {
                    Unframed::Closed(_) => Closed::WebSocket(why.to_string()),
                    Unframed::Malformed(why) => Closed::Malformed(why, None),
                })?;
                self.flushing |= self.output.len() > before;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Takes one whole packet from the front: the length of its fixed header, and its bytes.
fn split(input: &mut BytesMut, most: u32) -> Result<Option<(usize, BytesMut)>, String> {
    let (mut rest, mut head) = (0, 1);
    loop {
        let Some(&byte) = input.get(head) else { return Ok(None) };
        rest |= usize::from(byte & 0x7f) << (7 * (head - 1));
        head += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if head > 4 {
            return Err("a length of more than four bytes: this is not MQTT".into());
        }
    }
    if rest > most as usize {
        return Err(format!("a packet of {rest} bytes, though {most} were offered"));
    }
    Ok((input.len() >= head + rest).then(|| (head, input.split_to(head + rest))))
}

fn parse(head: usize, mut whole: BytesMut) -> Result<Packet, Closed> {
    let kind = whole[0] >> 4;
    match (kind, whole.len() - head) {
        // The codec takes a DISCONNECT without a reason for malformed; it means 0.
        (14, 0) => return Ok(Packet::Disconnect(Disconnect::new(DisconnectReasonCode::NormalDisconnection))),
        // CONNACK without properties: MQTT 3.
        (2, 2) => return Err(Closed::Mqtt3(whole[head + 1])),
        _ => {}
    }
    Packet::read(&mut whole, None).map_err(|why| match why {
        WireError::InvalidConnectReturnCode(code)
        | WireError::InvalidReason(code)
        | WireError::InvalidSubscribeReasonCode(code) => {
            Closed::Malformed(format!("a packet of type {kind} has the unknown reason 0x{code:02X}"), Some(code))
        }
        why => Closed::Malformed(format!("a packet of type {kind} is malformed: {why}"), None),
    })
}

#[cfg(test)]
mod tests {
    use rumqttc::v5::mqttbytes::v5::{PubAck, PubAckReason};

    use super::*;

    fn bytes(packets: &[Packet]) -> BytesMut {
        let mut out = BytesMut::new();
        packets.iter().for_each(|packet| {
            packet.write(&mut out, None).expect("write");
        });
        out
    }

    fn ack(pkid: u16, reason: PubAckReason) -> Packet {
        Packet::PubAck(PubAck { pkid, reason, properties: None })
    }

    async fn session_with(parts: Vec<Vec<u8>>) -> (Session, tokio::task::JoinHandle<tokio::io::DuplexStream>) {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let feeder = tokio::spawn(async move {
            for part in parts {
                tokio::io::AsyncWriteExt::write_all(&mut theirs, &part).await.expect("write");
                tokio::task::yield_now().await;
            }
            theirs
        });
        (Session::new(Carried { io: Box::new(ours), frames: None }), feeder)
    }

    #[tokio::test]
    async fn packets_cut_anywhere_are_read_whole_and_a_dropped_wait_loses_none() {
        let all: Vec<Packet> = (1..200).map(|id| ack(id, PubAckReason::NoMatchingSubscribers)).collect();
        let parts = bytes(&all).chunks(3).map(<[u8]>::to_vec).collect();
        let (mut session, _feeder) = session_with(parts).await;
        let mut read = Vec::new();
        while read.len() < all.len() {
            tokio::select! {
                biased;
                // Dropped as often as it is polled.
                () = std::future::ready(()), if fastrand::bool() => tokio::task::yield_now().await,
                event = session.next() => match event.expect("open") {
                    Some(packet) => read.push(packet),
                    None => panic!("nothing was written"),
                }
            }
        }
        assert_eq!(read, all);
    }

    #[tokio::test]
    async fn what_is_pushed_is_written_whole_and_reported_once() {
        let (mut session, feeder) = session_with(Vec::new()).await;
        let mut theirs = feeder.await.expect("feeder");
        let meant: Vec<Packet> = (1..50).map(|id| ack(id, PubAckReason::Success)).collect();
        meant.iter().for_each(|packet| session.push(packet).expect("pushed"));
        assert!(!session.is_idle());
        let reader = tokio::spawn(async move {
            let mut came = vec![0; 49 * 4];
            tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut came).await.expect("read");
            came
        });
        assert!(matches!(session.next().await, Ok(None)) && session.is_idle());
        assert_eq!(reader.await.expect("reader"), bytes(&meant).to_vec());
        assert!(matches!(session.next().await, Err(Closed::End)), "closed by the other side");
    }

    #[test]
    fn answers_of_old_and_odd_brokers_are_named_and_not_taken_for_an_end() {
        let one = |bytes: &[u8]| {
            let mut input = BytesMut::from(bytes);
            let (head, whole) = split(&mut input, limits::PACKET_BYTES).expect("length").expect("whole");
            parse(head, whole)
        };
        assert!(matches!(one(&[0xe0, 0]), Ok(Packet::Disconnect(_))), "no reason is reason 0");
        assert!(matches!(one(&[0x20, 2, 0, 1]), Err(Closed::Mqtt3(1))));
        assert!(matches!(one(&[0x40, 4, 0, 1, 0x95, 0]), Err(Closed::Malformed(_, Some(0x95)))));
        assert!(matches!(one(&[0x20, 3, 0, 0x87, 0]), Ok(Packet::ConnAck(_))));
        assert_eq!(
            split(&mut BytesMut::from(&b"HTTP/1.1 400 Bad Request"[..]), limits::PACKET_BYTES).expect("short"),
            None
        );
        assert!(split(&mut BytesMut::from(&[0x30, 0xff, 0xff, 0xff, 0xff, 1][..]), limits::PACKET_BYTES).is_err());
        assert!(
            split(&mut BytesMut::from(&[0x30, 0xff, 0xff, 0x7f][..]), limits::PACKET_BYTES).is_err(),
            "2 MiB were never offered"
        );
    }
}
