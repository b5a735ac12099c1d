//! A wire between the daemon and a broker. Faults: cut (both ends closed), stalled (nothing passes, nothing is closed,
//! also for new connections), dripping (few bytes at a time), half-open (stalled while the
//! broker dies), refused (new connections are closed at once).

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

/// What the wire does with bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wire {
    /// They pass.
    Passes,
    /// They wait.
    Stalled,
    /// So many pass every 10 ms.
    Drips(usize),
    /// New connections are closed at once.
    Refused,
}

#[derive(Clone)]
pub struct Cable {
    pub port: u16,
    state: Arc<Mutex<(Wire, Vec<TcpStream>)>>,
}

impl Cable {
    /// To a broker on this machine.
    pub fn to(broker_port: u16) -> Self {
        let listener = crate::listen();
        let port = listener.local_addr().expect("address").port();
        let cable = Self { port, state: Arc::new(Mutex::new((Wire::Passes, Vec::new()))) };
        let own = cable.clone();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if own.is() == Wire::Refused {
                    continue;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", broker_port)) else { continue };
                let clone = |s: &TcpStream| s.try_clone().expect("clone");
                own.state.lock().expect("state").1.extend([clone(&near), clone(&far)]);
                for (from, to) in [(clone(&near), clone(&far)), (far, near)] {
                    let own = own.clone();
                    std::thread::spawn(move || own.pump(from, to));
                }
            }
        });
        cable
    }

    fn is(&self) -> Wire {
        self.state.lock().expect("state").0
    }

    /// From now on.
    pub fn set(&self, wire: Wire) {
        self.state.lock().expect("state").0 = wire;
    }

    /// Closes both ends of every connection.
    pub fn cut(&self) {
        for stream in self.state.lock().expect("state").1.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut chunk = vec![0; 16 * 1024];
        loop {
            let most = match self.is() {
                Wire::Stalled => {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                Wire::Drips(n) => {
                    std::thread::sleep(Duration::from_millis(10));
                    n
                }
                _ => chunk.len(),
            };
            match from.read(&mut chunk[..most]) {
                // Stalled meanwhile: what was read waits as well.
                Ok(n) if n > 0 => {
                    while self.is() == Wire::Stalled {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    if to.write_all(&chunk[..n]).is_err() {
                        break;
                    }
                }
                _ => break,
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
