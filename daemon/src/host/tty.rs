//! The only file that opens a tty. A port is taken exclusively, or shared with the guard, which writes to Modbus devices on
//! a line that the daemon reads. Those who share one take turns by the kernel's lock on the device node, which ends with the
//! process that holds it.

use std::{
    io::{self, Read, Write},
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

pub use tokio_serial::SerialStream;
use tokio_serial::{
    ClearBuffer, DataBits, FlowControl, Parity, SerialPort, SerialPortBuilder, SerialPortBuilderExt, StopBits,
};

use super::{error::HostError, sys};

/// A port's settings.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// Path of the device node.
    pub path: &'a str,
    /// Bits per second.
    pub baud: u32,
    /// Data bits, 5–8.
    pub data: u8,
    /// `N`, `E` or `O`.
    pub parity: u8,
    /// Stop bits, 1 or 2.
    pub stop: u8,
    /// Others may open it too.
    pub shared: bool,
}

fn builder(settings: Settings<'_>) -> SerialPortBuilder {
    tokio_serial::new(settings.path, settings.baud)
        .data_bits(match settings.data {
            5 => DataBits::Five,
            6 => DataBits::Six,
            7 => DataBits::Seven,
            _ => DataBits::Eight,
        })
        .parity(match settings.parity {
            b'E' => Parity::Even,
            b'O' => Parity::Odd,
            _ => Parity::None,
        })
        .stop_bits(if settings.stop == 2 { StopBits::Two } else { StopBits::One })
        .flow_control(FlowControl::None)
        .exclusive(!settings.shared)
}

/// Opens a port for a task.
///
/// # Errors
/// Why not, in words.
pub fn open(settings: Settings<'_>) -> Result<SerialStream, HostError> {
    let mut port = builder(settings).open_native_async().map_err(|why| HostError(why.to_string().to_lowercase()))?;
    if !settings.shared {
        port.set_exclusive(true).map_err(|why| HostError(format!("take exclusively: {why}")))?;
    }
    Ok(port)
}

/// A shared port for a thread.
pub struct Shared {
    port: Box<dyn SerialPort>,
    fd: RawFd,
}

impl Shared {
    /// Opens it.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn open(settings: Settings<'_>) -> Result<Self, HostError> {
        let shared = Settings { shared: true, ..settings };
        let port = builder(shared).open_native().map_err(|why| HostError(why.to_string().to_lowercase()))?;
        let fd = port.as_raw_fd();
        Ok(Self { port: Box::new(port), fd })
    }

    /// For `take` and `free`.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// Discards what was received and not yet read.
    ///
    /// # Errors
    /// The port is gone.
    pub fn forget(&self) -> Result<(), HostError> {
        self.port.clear(ClearBuffer::Input).map_err(|why| HostError(why.to_string().to_lowercase()))
    }

    /// How long a read or a write may wait.
    ///
    /// # Errors
    /// The port is gone.
    pub fn patience(&mut self, wait: Duration) -> io::Result<()> {
        self.port.set_timeout(wait).map_err(io::Error::from)
    }
}

impl Read for Shared {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.port.read(into)
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.port.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        // That would wait until the last bit is on the wire, for as long as a USB adapter likes.
        Ok(())
    }
}

/// Discards what was received and not yet read.
///
/// # Errors
/// The port is gone.
pub fn forget(port: &impl SerialPort) -> Result<(), HostError> {
    port.clear(ClearBuffer::Input).map_err(|why| HostError(why.to_string().to_lowercase()))
}

/// Takes the turn on a shared port, unless another process has it.
pub fn take(fd: RawFd) -> bool {
    sys::lock_file(fd)
}

/// Gives the turn to the next one.
pub fn free(fd: RawFd) {
    sys::unlock_file(fd);
}
