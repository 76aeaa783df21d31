//! What goes on beside a measurement, where the workload wants that: loops that use up the CPUs, or peers of the same server
//! that send without a pause.

use std::io::{Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

/// Who is there besides the client that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Nobody.
    Nobody,
    /// So many endless loops, processes of their own.
    Loops(u32),
    /// [`FLOODERS`] peers of the same server that send this without a pause and read what comes.
    Flooders(&'static str),
}

/// Peers that flood.
pub(crate) const FLOODERS: usize = 500;
/// Threads that they share: the machine has few CPUs.
const FLOODER_THREADS: usize = 2;
/// Bytes that each tries to send at a time.
const BURST_BYTES: usize = 64 << 10;

/// Goes on until it is dropped.
#[derive(Debug)]
pub(crate) struct Neighbours {
    loops: Vec<Child>,
    over: Arc<AtomicBool>,
    flooders: Vec<JoinHandle<()>>,
}

impl Neighbours {
    /// Starts them. Returns when all flooders are connected.
    pub(crate) fn start(beside: Beside, server: SocketAddr) -> Result<Neighbours> {
        let mut all = Neighbours { loops: Vec::new(), over: Arc::default(), flooders: Vec::new() };
        match beside {
            Beside::Nobody => {}
            Beside::Loops(count) => {
                for _ in 0..count {
                    let mut command = Command::new("sh");
                    command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
                    all.loops.push(command.spawn()?);
                }
            }
            Beside::Flooders(line) => {
                for _ in 0..FLOODER_THREADS {
                    let connect = || {
                        let stream = TcpStream::connect(server)?;
                        stream.set_nonblocking(true)?;
                        Ok(stream)
                    };
                    let peers: Vec<TcpStream> =
                        (0..FLOODERS / FLOODER_THREADS).map(|_| connect()).collect::<Result<_>>()?;
                    let over = Arc::clone(&all.over);
                    all.flooders.push(thread::spawn(move || flood(peers, line, &over)));
                }
            }
        }
        Ok(all)
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        for child in &mut self.loops {
            // It cannot have ended by itself, and nobody else waits for it.
            drop(child.kill());
            drop(child.wait());
        }
        for flooder in self.flooders.drain(..) {
            drop(flooder.join());
        }
    }
}

fn flood(mut peers: Vec<TcpStream>, line: &str, over: &AtomicBool) {
    let burst = line.repeat(BURST_BYTES / line.len());
    let mut buffer = vec![0; BURST_BYTES];
    // Where in the burst each one is, so that lines stay whole.
    let mut sent = vec![0; peers.len()];
    while !over.load(Relaxed) {
        for (peer, sent) in peers.iter_mut().zip(&mut sent) {
            if let Ok(count) = peer.write(&burst.as_bytes()[*sent..]) {
                *sent = (*sent + count) % burst.len();
            }
            // What comes is of no interest, nor why nothing does.
            drop(peer.read(&mut buffer));
        }
    }
}
