//! What goes on beside a measurement, where the workload wants that: loops that use up the CPUs, or peers of the same server
//! that send without a pause. Processes of their own, which say that they have begun as servers do, and are ended as those are.

use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use crate::server::Server;

/// Who is there besides the client that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Nobody.
    Nobody,
    /// So many endless loops.
    Loops(u32),
    /// 500 peers of the same server that send this without a pause and read what comes.
    Flooders(&'static str),
}

/// Processes that flood, and the peers that each one is: the machine has few CPUs.
const FLOODS: u32 = 2;
const PEERS: usize = 250;
/// Bytes that each peer tries to send at a time.
const BURST_BYTES: usize = 64 << 10;

/// Starts them. Returns when all flooders are connected; they go on until they are dropped.
pub(crate) fn start(beside: Beside, server: SocketAddr) -> Result<Vec<Server>> {
    let (count, words) = match beside {
        Beside::Nobody => return Ok(Vec::new()),
        Beside::Loops(count) => {
            (count, ["sh", "-c", "echo listening on $0; while :; do :; done"].map(String::from))
        }
        Beside::Flooders(line) => {
            (FLOODS, [std::env::current_exe()?.display().to_string(), "flooders".to_owned(), line.to_owned()])
        }
    };
    let start = |_| Server::start(Command::new(&words[0]).args(&words[1..]).arg(server.to_string()));
    (0..count).map(start).collect()
}

/// Sends a line to an address for ever, as [`PEERS`].
pub(crate) fn flood(words: &[String]) -> Result<bool> {
    let [line, address] = words else { return Err(Error::other("a line and an address are missing")) };
    let connect = |_| {
        let stream = TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        Ok((stream, 0))
    };
    // Each with where in the burst it is, so that lines stay whole.
    let mut peers = (0..PEERS).map(connect).collect::<Result<Vec<(TcpStream, usize)>>>()?;
    println!("listening on {address}");
    let burst = line.repeat(BURST_BYTES / line.len());
    let mut buffer = vec![0; BURST_BYTES];
    loop {
        for (peer, sent) in &mut peers {
            if let Ok(count) = peer.write(&burst.as_bytes()[*sent..]) {
                *sent = (*sent + count) % burst.len();
            }
            // What comes is of no interest, nor why nothing does.
            drop(peer.read(&mut buffer));
        }
    }
}
