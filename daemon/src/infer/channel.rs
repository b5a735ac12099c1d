//! What goes between the daemon and its worker: a socket that rings, and shared memory that holds the tensors.
//!
//! The socket is SOCK_SEQPACKET: one message, one packet. The start is four JSON packets, the parent's first, some with
//! a file descriptor; then the doorbell: `number, count` (two u32le) from the parent, the same back when all are done; each
//! ring has the next number.
//!
//! The worker is not trusted: its answers are checked here (`understand`), no descriptor of its is accepted, and what it
//! writes to the shared memory is copied once, checked and then used. Nothing there is an index or a size.
//!
//! ```text
//! shared memory:  0       done: u32, runs finished since the last ring (so that a slow window can be named)
//!                 64      slot 0 │ slot 1 │ …   each `stride` bytes:
//!                           state: u32 (0 ok, 1 the run failed, else not run), took_us: u32
//!                           inputs, f32, each at its offset, 64-byte aligned
//!                           outputs, f64, each at its offset, 64-byte aligned
//! ```

use std::{
    collections::BTreeMap,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::PathBuf,
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, send, sendmsg},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{config::Provider, host::sys, limits};

/// Where the slots begin.
pub const SLOTS_AT: usize = 64;
/// Where in a slot the first tensor begins.
pub const TENSORS_AT: usize = 64;
/// State of a slot whose model ran.
pub const RAN: u32 = 0;
/// State of a slot whose model failed.
pub const FAILED: u32 = 1;
/// State that the parent gives a slot before the worker has written there.
pub const PENDING: u32 = u32::MAX;
/// Largest start message: a model with 1,000 inputs of 100 bytes each, described.
const MESSAGE: usize = 128 * 1024;

/// First message, with the model as a descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// ONNX Runtime's library.
    pub runtime: PathBuf,
    /// What is to run it.
    pub provider: Provider,
    /// Memory it may take, bytes.
    pub memory_bytes: u64,
    /// Where the provider's engine lies; a folder that is writable is to be filled, and the worker ends then.
    pub engine: Option<EngineFolder>,
    /// Run the model once before a window is due, where that pays.
    pub warm_up: bool,
    /// Instead of serving, try what must not be possible, this file among it.
    pub judge: Option<PathBuf>,
}

/// Where the engine lies that a provider built for the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFolder {
    /// The folder.
    pub path: PathBuf,
    /// The worker builds the engine; otherwise it only reads it.
    pub writable: bool,
}

/// One input or output as the model declares it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// Name.
    pub name: String,
    /// `float32`, `int64`, …; what is no tensor of numbers says what it is instead.
    pub kind: String,
    /// Dimensions; -1 where the model leaves it open.
    pub shape: Vec<i64>,
}

/// Answer to `Hello`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Loaded {
    /// The model's inputs.
    pub inputs: Vec<Tensor>,
    /// The model's outputs.
    pub outputs: Vec<Tensor>,
    /// File name of ONNX Runtime's library, which has its version.
    pub runtime: String,
    /// Which nodes run where.
    pub placement: Vec<Placed>,
    /// Which fences stand around the worker.
    pub sandbox: String,
}

/// What one provider runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// As ONNX Runtime calls it.
    pub provider: String,
    /// Nodes, after optimisation.
    pub nodes: usize,
    /// The same by operator.
    pub ops: BTreeMap<String, usize>,
}

/// Which shapes the inputs get, and which outputs are wanted.
#[derive(Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// Name and whole shape of every input.
    pub inputs: Vec<(String, Vec<i64>)>,
    /// Names.
    pub outputs: Vec<String>,
    /// What inputs are fed in the trial run, by name, where that is known; others are fed ones.
    pub known: BTreeMap<String, Vec<f32>>,
}

/// Answer to `Prepare`: how many values each wanted output has, found by a trial run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// Values of each output.
    pub outputs: Vec<usize>,
}

/// Where everything lies, with the memory as a descriptor. Answered by `Ready`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// Offset in the slot and values, by input.
    pub inputs: Vec<(usize, usize)>,
    /// Offset in the slot and values, by output.
    pub outputs: Vec<(usize, usize)>,
    /// Bytes of a slot.
    pub stride: usize,
    /// Slots.
    pub slots: usize,
}

/// The worker serves; or what it could do that it must not be able to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ready {
    /// What was tried, and what came of it.
    pub judged: Vec<(String, String)>,
}

/// Any answer of the worker: what was asked for, or why not.
pub type Answer<T> = Result<T, String>;

impl Layout {
    /// Lays out tensors of these sizes, as many slots as fit.
    pub fn plan(inputs: &[usize], outputs: &[usize], slots_max: usize, bytes_max: usize) -> Result<Self, String> {
        let mut at = TENSORS_AT;
        let mut place = |values: usize, size: usize| {
            let offset = at;
            // Sizes that do not fit any memory must not wrap into one that does.
            at = at.saturating_add(values.saturating_mul(size)).checked_next_multiple_of(64).unwrap_or(usize::MAX);
            (offset, values)
        };
        let inputs: Vec<_> = inputs.iter().map(|n| place(*n, 4)).collect();
        let outputs: Vec<_> = outputs.iter().map(|n| place(*n, 8)).collect();
        let slots = (bytes_max.saturating_sub(SLOTS_AT) / at).min(slots_max);
        if slots == 0 {
            return Err(format!("one window needs {at} bytes of shared memory, and {bytes_max} is all there is"));
        }
        Ok(Self { inputs, outputs, stride: at, slots })
    }

    /// Bytes of the whole memory.
    pub fn bytes(&self) -> usize {
        SLOTS_AT + self.stride * self.slots
    }

    /// Offset of a slot.
    pub fn slot(&self, slot: usize) -> usize {
        SLOTS_AT + self.stride * slot
    }
}

/// An answer of the worker that is checked before it is used.
pub trait Reply: DeserializeOwned {
    /// Bounds what it says and makes its texts fit for a log line.
    ///
    /// # Errors
    /// What is out of bounds.
    fn check(&mut self) -> Result<(), String>;
}

impl Reply for Loaded {
    fn check(&mut self) -> Result<(), String> {
        for (what, tensors) in [("inputs", &mut self.inputs), ("outputs", &mut self.outputs)] {
            bounded(what, tensors.len(), limits::TENSORS_MAX)?;
            for tensor in tensors.iter_mut() {
                tensor.kind = line(&tensor.kind);
                bounded("dimensions of a tensor", tensor.shape.len(), limits::TENSOR_RANK)?;
                let mut values = Some(1i64);
                for dimension in &tensor.shape {
                    if *dimension < -1 {
                        return Err(format!("a tensor has a dimension of {dimension}"));
                    }
                    values = values.and_then(|values| values.checked_mul((*dimension).max(1)));
                }
                if values.is_none_or(|values| values > limits::TENSOR_VALUES_MAX) {
                    return Err(format!("a tensor has more than {} values", limits::TENSOR_VALUES_MAX));
                }
            }
        }
        bounded("providers", self.placement.len(), limits::TENSORS_MAX)?;
        for placed in &mut self.placement {
            placed.provider = line(&placed.provider);
            bounded("nodes", placed.nodes, limits::NODES_MAX)?;
        }
        self.runtime = line(&self.runtime);
        self.sandbox = line(&self.sandbox);
        Ok(())
    }
}

impl Reply for Prepared {
    fn check(&mut self) -> Result<(), String> {
        // How large they may be together is a question of the model's: `Layout`.
        bounded("outputs", self.outputs.len(), limits::TENSORS_MAX)
    }
}

impl Reply for Ready {
    fn check(&mut self) -> Result<(), String> {
        bounded("attempts", self.judged.len(), limits::TENSORS_MAX)?;
        self.judged.iter_mut().for_each(|(what, came)| (*what, *came) = (line(what), line(came)));
        Ok(())
    }
}

fn bounded(what: &str, n: usize, most: usize) -> Result<(), String> {
    if n <= most { Ok(()) } else { Err(format!("{n} {what}, at most {most}")) }
}

/// A stranger's text as one line of a log: no control characters, not longer than a line may be.
pub fn line(text: &str) -> String {
    text.chars().take(limits::WORKER_LINE).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Reads an answer of the worker; any bytes are an answer or an error.
///
/// # Errors
/// What the worker says went wrong, or why its answer is rejected.
pub fn understand<T: Reply>(bytes: &[u8]) -> Result<T, String> {
    match serde_json::from_slice::<Answer<T>>(bytes) {
        Ok(Ok(mut reply)) => reply.check().map(|()| reply).map_err(|why| format!("reject the worker's answer: {why}")),
        Ok(Err(why)) => Err(line(&why)),
        Err(why) => Err(format!("reject the worker's answer: {}", line(&why.to_string()))),
    }
}

/// The parent's: sends one message, with a descriptor if given. Does not wait: a worker that reads nothing is an error.
///
/// # Errors
/// The worker is gone, or does not read.
pub fn tell<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fd: Option<BorrowedFd<'_>>) -> Result<(), String> {
    let bytes = serde_json::to_vec(message).map_err(|why| why.to_string())?;
    let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &control[..] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None)
        .map(|_| ())
        .map_err(|why| format!("talk to the worker: {why}"))
}

/// The parent's: receives one message. Without room for control messages the kernel closes every descriptor that came along.
///
/// # Errors
/// The worker is gone, or its message is too long.
pub fn hear(socket: BorrowedFd<'_>) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0u8; MESSAGE];
    // MSG_TRUNC: the length of the packet, also where it was longer.
    match recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_TRUNC) {
        Ok(0) => Err("the worker ended".into()),
        Ok(len) if len > MESSAGE => Err(format!("reject the worker's answer: {len} bytes, at most {MESSAGE}")),
        Ok(len) => {
            bytes.truncate(len);
            Ok(bytes)
        }
        Err(why) => Err(format!("hear from the worker: {why}")),
    }
}

/// The worker's: sends one answer.
///
/// # Errors
/// The parent is gone.
pub fn answer<T: Serialize>(socket: BorrowedFd<'_>, answer: &Answer<T>) -> Result<(), String> {
    let bytes = serde_json::to_vec(answer).map_err(|why| why.to_string())?;
    send(socket.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).map(|_| ()).map_err(|why| format!("answer: {why}"))
}

/// The worker's: receives one message and the descriptor that came with it.
///
/// # Errors
/// The parent is gone, or what it says cannot be read.
pub fn recv_with_fd<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<(T, Option<OwnedFd>), String> {
    let mut bytes = vec![0u8; MESSAGE];
    let mut control = cmsg_space!([RawFd; 1]);
    let (len, fds) = {
        let mut io = [IoSliceMut::new(&mut bytes)];
        let got = loop {
            match recvmsg::<()>(socket.as_raw_fd(), &mut io, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(Errno::EINTR) => {}
                Err(why) => return Err(format!("hear from the parent: {why}")),
                Ok(got) => break got,
            }
        };
        let rights = got.cmsgs().map_err(|why| why.to_string())?.filter_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => Some(fds),
            _ => None,
        });
        (got.bytes, rights.flatten().map(sys::adopt_fd).collect::<Vec<_>>())
    };
    if len == 0 {
        return Err("the parent ended".into());
    }
    serde_json::from_slice(&bytes[..len])
        .map(|message| (message, fds.into_iter().next()))
        .map_err(|why| format!("understand the parent: {why}"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn socket_pair() -> (OwnedFd, OwnedFd) {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("sockets")
    }

    #[test]
    fn descriptors_sent_by_the_worker_are_closed() {
        let (ours, theirs) = socket_pair();
        let file = tempfile::NamedTempFile::new().expect("file");
        let fds = [file.as_raw_fd(); 16];
        // Other tests of this process open files meanwhile, but not this one.
        let file_path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("path");
        let open = || {
            let all = std::fs::read_dir("/proc/self/fd").expect("fds").flatten();
            all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == file_path)).count()
        };
        for _ in 0..50 {
            let control = [ControlMessage::ScmRights(&fds)];
            let bytes = [IoSlice::new(b"{\"Err\":\"no\"}")];
            sendmsg::<()>(theirs.as_raw_fd(), &bytes, &control, MsgFlags::empty(), None).expect("send");
            assert_eq!(understand::<Ready>(&hear(ours.as_fd()).expect("hear")).map(|_| ()), Err("no".into()));
        }
        assert_eq!(open(), 1, "descriptors of the worker stayed open");
    }

    #[test]
    fn answers_longer_than_a_message_are_rejected() {
        let (ours, theirs) = socket_pair();
        send(theirs.as_raw_fd(), &vec![b' '; MESSAGE + 1], MsgFlags::empty()).expect("send");
        assert!(hear(ours.as_fd()).expect_err("too long").contains("at most"));
    }

    #[test]
    fn a_worker_that_reads_nothing_does_not_hold_the_parent() {
        let (ours, _theirs) = socket_pair();
        let refused = (0..10_000).find_map(|i| tell(ours.as_fd(), &i, None).err());
        assert!(refused.expect("the socket is full").contains("talk to the worker"));
    }

    #[test]
    fn malformed_answers_are_rejected_with_the_reason() {
        let loaded = |shape: &str| {
            let tensor = format!(r#"{{"name":"x","kind":"float32","shape":{shape}}}"#);
            let rest = r#""outputs":[],"runtime":"r","placement":[],"sandbox":"s""#;
            understand::<Loaded>(format!(r#"{{"Ok":{{"inputs":[{tensor}],{rest}}}}}"#).as_bytes())
        };
        assert!(loaded("[1,-1,8]").is_ok());
        for shape in ["[9223372036854775807,4]", "[-2]", "[4294967296,2]", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]"] {
            assert!(loaded(shape).is_err_and(|why| why.starts_with("reject the worker's answer")), "{shape}");
        }
        let why = understand::<Ready>(b"{\"Err\":\"a\\u001b[2Jb\\nc\"}").expect_err("an error");
        assert_eq!(why, "a\u{fffd}[2Jb\u{fffd}c");
    }

    #[test]
    fn tensors_do_not_overlap_and_slots_fit_the_memory() {
        let layout = Layout::plan(&[512, 9, 9], &[1, 9], 64, 1 << 20).expect("fits");
        let mut ends = TENSORS_AT;
        for (tensors, size) in [(&layout.inputs, 4), (&layout.outputs, 8)] {
            for (offset, values) in tensors {
                assert!(*offset >= ends && offset % 64 == 0);
                ends = offset + values * size;
            }
        }
        assert!(ends <= layout.stride && layout.bytes() <= 1 << 20);
        assert!(Layout::plan(&[1 << 20], &[1], 64, 1 << 20).is_err());
        assert!(Layout::plan(&[usize::MAX / 2], &[usize::MAX], 64, 1 << 20).is_err());
    }
    proptest::proptest! {
        #[test]
        fn whatever_a_worker_answers_is_rejected_or_within_bounds(data in crate::flow::spoilt::spoilt(vec![
            br#"{"Ok":{"inputs":[{"name":"x","kind":"float32","shape":[1,-1,8]}],"outputs":[],
                "runtime":"r","placement":[{"provider":"c","nodes":3}],"sandbox":"s"}}"#.to_vec(),
            br#"{"Ok":{"outputs":[1,9,18446744073709551615]}}"#.to_vec(),
            br#"{"Ok":{"judged":[["a","b"]]}}"#.to_vec(),
        ])) {
            if let Ok(loaded) = understand::<Loaded>(&data) {
                let texts = loaded.placement.iter().map(|placed| &placed.provider).chain([&loaded.runtime, &loaded.sandbox]);
                texts.for_each(|text| assert!(!text.contains(char::is_control)));
                // Together with the largest window this does not wrap.
                let values = |shape: &[i64]| shape.iter().map(|d| (*d).max(1)).product::<i64>();
                loaded.inputs.iter().for_each(|tensor| assert!(values(&tensor.shape) <= limits::TENSOR_VALUES_MAX));
            }
            if let Ok(prepared) = understand::<Prepared>(&data)
                && let Ok(layout) = Layout::plan(&[8], &prepared.outputs, limits::SLOTS_MAX, limits::SHARED_BYTES)
            {
                assert!(layout.bytes() <= limits::SHARED_BYTES);
            }
            let _ = understand::<Ready>(&data);
        }
    }
}
