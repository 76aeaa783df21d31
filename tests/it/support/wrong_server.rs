//! A HELO server on a real socket that is wrong in one chosen way.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

/// What is wrong. Unless said otherwise it happens once, to the fourth request that the server gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The text is another one.
    Text,
    /// The student id is another one.
    Tail,
    /// No reply.
    Drop,
    /// The same reply twice.
    Duplicate,
    /// The reply comes after that to the next request.
    Swap,
    /// The reply ends in its middle.
    Truncate,
    /// The connection ends instead of the reply.
    Close,
    /// The connection is reset instead of the reply, together with the replies to the first three.
    Reset,
    /// No reply to this request and all that follow on its connection.
    Silence,
    /// Half a reply, and then the same.
    HalfThenSilence,
    /// No reply to any request.
    AlwaysSilent,
    /// Every request is answered by a line that is no reply.
    Rubbish,
    /// The server sleeps for this long before the reply.
    Sleep(Duration),
    /// The same, and no reply to those that follow.
    SleepThenSilence(Duration),
    /// From the fourth request on, lines that nobody asked for come without end.
    Stream,
    /// The same without an end of line.
    StreamOfOneLine,
    /// Every request gets one byte every few milliseconds, and no more.
    Drip,
    /// Nothing is read.
    Deaf,
    /// Every connection is closed as soon as it is there.
    CloseAtOnce,
    /// After each reply the server says that it ends the connection, and does not.
    LastWordsAlways,
    /// After each reply comes a line that says some error.
    ErrorAlways,
    /// The request is answered with the word for one that waited too long.
    Busy,
    /// Every connection is told that the server is full.
    Full,
    /// From here on, each connection gets so many replies and the end of stream.
    StopAfter(usize),
    /// As `StopAfter(4)`, but half a reply comes before the end.
    StopInside,
    /// The server disappears with all connections.
    Die,
    /// The connection ends instead of the reply, and so many that come then as soon as they are there.
    Away(usize),
}

/// The server; it ends when dropped.
#[derive(Debug)]
pub(crate) struct WrongServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    fault: Fault,
    requests: AtomicUsize,
    ended: AtomicBool,
}

impl WrongServer {
    pub(crate) fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { fault, requests: AtomicUsize::new(0), ended: AtomicBool::new(false) });
        let ours = Arc::clone(&shared);
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming() {
                if ours.ended.load(Ordering::SeqCst) {
                    break;
                }
                let shared = Arc::clone(&ours);
                // It ends when the peer closes, which every run does.
                drop(thread::spawn(move || drop(serve(&shared, stream.unwrap()))));
            }
        });
        Self { address, shared, acceptor: Some(acceptor) }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Requests that it has got.
    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

impl Drop for WrongServer {
    fn drop(&mut self) {
        self.shared.end(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().unwrap();
        }
    }
}

impl Shared {
    /// Makes the acceptor look at `ended` by one more connection.
    fn end(&self, address: SocketAddr) {
        if !self.ended.swap(true, Ordering::SeqCst) {
            drop(TcpStream::connect(address));
        }
    }
}

/// Ends our side, and reads what still comes, so that the peer sees no reset.
fn finish(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).map(drop)
}

fn serve(shared: &Shared, mut stream: TcpStream) -> std::io::Result<()> {
    let address = stream.local_addr()?;
    let reply = |line: &str, id: &str| {
        format!("{line}\nIP:{}\nPort:{}\nStudentID:{id}\n", address.ip(), address.port())
    };
    if shared.fault == Fault::Full {
        stream.write_all(b"ERROR server full (limit 0 connections)\n")?;
        return finish(&mut stream);
    }
    match shared.fault {
        Fault::CloseAtOnce => return Ok(()),
        // Each counts as a request.
        Fault::Away(connections)
            if (4..4 + connections).contains(&shared.requests.load(Ordering::SeqCst)) =>
        {
            shared.requests.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        Fault::Deaf => {
            while !shared.ended.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(10));
            }
            return Ok(());
        }
        _ => {}
    }
    let (mut held_back, mut silent, mut answered) = (String::new(), false, 0);
    let reader = BufReader::new(stream.try_clone()?);
    for line in reader.lines() {
        let line = line?;
        let fourth = shared.requests.fetch_add(1, Ordering::SeqCst) == 3;
        let right = reply(&line, "16336617");
        let out = match shared.fault {
            Fault::Text if fourth => reply("HELO something else", "16336617"),
            Fault::Tail if fourth => reply(&line, "00000000"),
            Fault::Drop if fourth => String::new(),
            Fault::Duplicate if fourth => right.repeat(2),
            Fault::Swap if fourth => {
                held_back = right;
                String::new()
            }
            Fault::Swap if !held_back.is_empty() => right + &std::mem::take(&mut held_back),
            Fault::Truncate if fourth => right[..right.len() / 2].to_owned(),
            Fault::Close | Fault::Away(_) if fourth => return finish(&mut stream),
            Fault::Reset if fourth => {
                // Seldom seen in between: the reset is mostly there when the replies are read, and a write is told of it.
                stream.write_all(held_back.as_bytes())?;
                return SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            Fault::Reset if shared.requests.load(Ordering::SeqCst) < 4 => {
                held_back += &right;
                String::new()
            }
            Fault::HalfThenSilence if fourth => {
                silent = true;
                right[..right.len() / 2].to_owned()
            }
            Fault::Silence | Fault::HalfThenSilence if fourth || silent => {
                silent = true;
                String::new()
            }
            Fault::AlwaysSilent => String::new(),
            // They end with an error, when the peer has closed.
            Fault::Stream if fourth => loop {
                stream.write_all(b"HELO you\nIP:1\n".repeat(500).as_slice())?;
            },
            Fault::StreamOfOneLine if fourth => loop {
                stream.write_all(&[b'x'; 10_000])?;
            },
            Fault::Drip => loop {
                stream.write_all(b"H")?;
                thread::sleep(Duration::from_millis(5));
            },
            Fault::LastWordsAlways => right + "ERROR internal error\n",
            Fault::ErrorAlways => right + "ERROR something else\n",
            Fault::Busy if fourth => "ERROR busy (waited 5ms)\n".to_owned(),
            Fault::SleepThenSilence(_) if shared.requests.load(Ordering::SeqCst) > 4 => String::new(),
            Fault::Rubbish => "what?\n".to_owned(),
            Fault::Sleep(length) | Fault::SleepThenSilence(length) if fourth => {
                thread::sleep(length);
                right
            }
            Fault::StopAfter(replies) if answered == replies => return finish(&mut stream),
            Fault::StopInside if answered == 4 => {
                stream.write_all(&right.as_bytes()[..right.len() / 2])?;
                return finish(&mut stream);
            }
            Fault::Die if fourth => {
                shared.end(address);
                return finish(&mut stream);
            }
            _ => right,
        };
        stream.write_all(out.as_bytes())?;
        answered += 1;
    }
    Ok(())
}
