//! What connections cost that nothing happens on: resident memory, and wake-ups.

use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::machine::{Switches, anonymous_bytes};
use crate::server::Server;

/// Connections whose memory does not count: they make the server allocate what it has only once.
const FIRST: usize = 100;

/// How long a server may take to accept and to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time for a server to come to rest.
const SETTLE: Duration = Duration::from_millis(500);

/// What was found.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Idle {
    /// Connections that were open.
    pub connections: usize,
    /// Resident bytes, heap and stacks, for each connection that has not sent anything yet.
    pub fresh_bytes: f64,
    /// The same once each has had one reply.
    pub used_bytes: f64,
    /// Context switches per second while nothing happens.
    pub switches_per_second: f64,
}

/// Opens connections to `server`, has each answered once, and watches the server for `rest`.
///
/// # Errors
/// If the server refuses a connection, or answers wrongly.
pub fn observe(server: &Server, connections: usize, rest: Duration) -> Result<Idle> {
    let pid = server.pid();
    let mut open = connect(server.address, FIRST)?;
    exchange(&mut open)?;
    let settled = || {
        thread::sleep(SETTLE);
        anonymous_bytes(pid)
    };
    let before = settled()?;
    let counted = connections.saturating_sub(FIRST).max(1);
    let mut more = connect(server.address, counted)?;
    // The last one's reply says that all have been accepted.
    exchange(&mut more[counted - 1..])?;
    let fresh = settled()?;
    exchange(&mut more)?;
    let used = settled()?;

    let (start, first) = (Instant::now(), Switches::of(pid)?);
    thread::sleep(rest);
    let (elapsed, last) = (start.elapsed(), Switches::of(pid)?);
    let switches = last.since(first).total();
    let each = |bytes: u64| (bytes as f64 - before as f64) / counted as f64;
    Ok(Idle {
        connections: open.len() + more.len(),
        fresh_bytes: each(fresh),
        used_bytes: each(used),
        switches_per_second: switches as f64 / elapsed.as_secs_f64(),
    })
}

fn connect(address: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let connect = |_| {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    (0..count).map(connect).collect()
}

/// One request and its reply on each connection.
fn exchange(streams: &mut [TcpStream]) -> Result<()> {
    for stream in streams {
        let address = stream.peer_addr()?;
        let (ip, port) = (address.ip(), address.port());
        let expected = format!("HELO idle\nIP:{ip}\nPort:{port}\nStudentID:16336617\n");
        stream.write_all(b"HELO idle\n")?;
        let mut reply = vec![0; expected.len()];
        stream.read_exact(&mut reply)?;
        if reply != expected.as_bytes() {
            return Err(Error::other(format!("wrong reply: {}", String::from_utf8_lossy(&reply))));
        }
    }
    Ok(())
}
