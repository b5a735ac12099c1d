//! What goes between the daemon and its worker: a socket that rings, and shared memory that holds the tensors.
//!
//! The socket is SOCK_SEQPACKET: one message, one packet. The start is four JSON packets, the parent's first, some with
//! a file descriptor; then the doorbell: `first, count` (two u32le) from the parent, the same back when all are done.
//!
//! ```text
//! shared memory:  0       done: u32, runs finished since the last ring (so that a slow window can be named)
//!                 64      slot 0 │ slot 1 │ …   each `stride` bytes:
//!                           state: u32 (0 ok, 1 the run failed), took_us: u32
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
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{config::Provider, host::sys};

/// Where the slots begin.
pub const SLOTS_AT: usize = 64;
/// Where in a slot the first tensor begins.
pub const TENSORS_AT: usize = 64;
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
    /// Instead of serving, try what must not be possible, this file among it.
    pub judge: Option<PathBuf>,
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
    /// What the library says of itself.
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
            at = (at + values * size).next_multiple_of(64);
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

/// Sends one message, with a descriptor if given.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fd: Option<BorrowedFd<'_>>) -> Result<(), String> {
    let bytes = serde_json::to_vec(message).map_err(|why| why.to_string())?;
    let fds: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &control[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
        .map(|_| ())
        .map_err(|why| format!("talk to the worker: {why}"))
}

/// Receives one message and the descriptor that came with it.
pub fn recv<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<(T, Option<OwnedFd>), String> {
    let mut bytes = vec![0u8; MESSAGE];
    let mut control = cmsg_space!([RawFd; 1]);
    let (len, fd) = {
        let mut io = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg::<()>(socket.as_raw_fd(), &mut io, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)
            .map_err(|why| format!("hear from the worker: {why}"))?;
        let rights = got.cmsgs().map_err(|why| why.to_string())?.find_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        (got.bytes, rights)
    };
    let fd = fd.map(sys::adopt_fd);
    if len == 0 {
        return Err("the worker ended".into());
    }
    serde_json::from_slice(&bytes[..len])
        .map(|message| (message, fd))
        .map_err(|why| format!("understand the worker: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
