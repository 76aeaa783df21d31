//! One message for many: how long until the last of the subscribers has it, and what CPU the server spends for each of them;
//! tidemill's `Group` and tokio's broadcast channel with a task for each connection, in turns.

use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use mio::{Events, Interest, Poll, Token};
use tidemill::{Connection, Group, Kind, Place, Reply, Request, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;

use crate::machine::CpuClock;
use crate::peers;
use crate::server::Server;
use crate::stats::{Estimate, column, in_turns, median};

/// How long the last subscriber may take to have a message.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Messages of a round that do not count.
const WARM_UP: usize = 3;

/// Compares how one message reaches many subscribers
#[derive(Debug, Parser)]
#[command(bin_name = "scripts/fanout.sh")]
pub(crate) struct Args {
    /// Connections that get each message
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    subscribers: usize,
    /// Messages of a round
    #[arg(long, value_name = "N", default_value_t = 20)]
    messages: usize,
    /// Bytes of a message
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    bytes: usize,
    /// Rounds, each with both servers
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
}

/// Who takes part.
const SERVERS: [&str; 2] = ["tidemill", "tokio"];

/// Serves as one of them, for so many subscribers, in a process of its own.
pub(crate) fn serve(words: &[String]) -> Result<bool> {
    let subscribers: usize = words[1].parse().map_err(Error::other)?;
    if words[0] == SERVERS[0] {
        serve_tidemill(subscribers)?
    } else {
        serve_tokio()?
    }
    Ok(true)
}

/// Whatever a connection says goes to all of them. Nothing of it blocks, and it is handled on the event loop.
struct Room(Mutex<Group>);

impl Service for Room {
    type State = ();
    type Worker = ();

    fn start_worker(&self) {}

    fn open(&self, _: &mut (), connection: &Connection<'_>, reply: &mut Reply<'_>) {
        reply.push(b"in\n");
        self.0.lock().expect("nothing panics with it").insert(connection.pusher());
    }

    fn handle(&self, _: &mut (), _: &mut (), request: &Request<'_>, _: &mut Reply<'_>) {
        let message: Arc<[u8]> = [request.line(), b"\n"].concat().into();
        self.0.lock().expect("nothing panics with it").push(message);
    }

    fn place(&self) -> Place {
        Place::Loop
    }

    fn classify(&self, _: &(), _: &[u8]) -> Kind {
        Kind::Inline
    }
}

fn serve_tidemill(subscribers: usize) -> Result<()> {
    let mut config = tidemill::Config::default();
    config.listen.push(([127, 0, 0, 1], 0).into());
    config.max_connections = subscribers + 10;
    let server = tidemill::Server::builder(Room(Mutex::default())).config(config).start();
    let server = server.map_err(Error::other)?;
    println!("listening on {}", server.local_addr());
    server.wait().map(drop).map_err(Error::other)
}

fn serve_tokio() -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    peers::announce(&listener)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_io().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (all, _) = broadcast::channel::<Arc<[u8]>>(64);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let (to_all, mut messages) = (all.clone(), all.subscribe());
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let mut buffer = [0; 4096];
                if write.write_all(b"in\n").await.is_err() {
                    return;
                }
                loop {
                    tokio::select! {
                        said = read.read(&mut buffer) => match said {
                            Ok(count) if count > 0 => drop(to_all.send(buffer[..count].into())),
                            _ => return,
                        },
                        message = messages.recv() => {
                            let Ok(message) = message else { return };
                            if write.write_all(&message).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            });
        }
    })
}

pub(crate) fn run(args: &Args) -> Result<bool> {
    let [ours, theirs] = SERVERS;
    let runs = in_turns(args.rounds, [&mut || measure(args, ours), &mut || measure(args, theirs)])?;
    println!("{} subscribers, {} bytes; for each of them and message:", args.subscribers, args.bytes);
    for (figure, what) in ["CPU", "until the last has it"].into_iter().enumerate() {
        let [ours, theirs] = runs.each_ref().map(|runs| column(runs, figure));
        let Some(ratio) = Estimate::of_ratios(&ours, &theirs) else { continue };
        println!("{what}: tidemill {:.2} µs, tokio {:.2} µs, ratio {ratio}", median(&ours), median(&theirs));
    }
    Ok(true)
}

/// Microseconds of the server's CPU, and of time, in a round with one server, for each message and subscriber.
fn measure(args: &Args, name: &str) -> Result<[f64; 2]> {
    let own = std::env::current_exe()?;
    let subscribers = args.subscribers.to_string();
    let mut server = Server::start(Command::new(own).args(["serve-fanout", name, &subscribers]))?;
    let mut all = Subscribers::connect(server.address, args.subscribers)?;
    all.receive(b"in\n".len())?;
    let clock = CpuClock::of(server.pid())?;
    let message = [&vec![b'm'; args.bytes - 1][..], b"\n"].concat();
    let (mut cpu, mut began) = (clock.read()?, Instant::now());
    for number in 0..WARM_UP + args.messages {
        if number == WARM_UP {
            (cpu, began) = (clock.read()?, Instant::now());
        }
        all.say(&message)?;
        all.receive(message.len())?;
    }
    let (cpu, wall) = (clock.read()? - cpu, began.elapsed());
    drop(all);
    server.stop().ok();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / (args.messages * args.subscribers) as f64;
    Ok([each(cpu), each(wall)])
}

struct Subscribers {
    poll: Poll,
    streams: Vec<mio::net::TcpStream>,
    /// Bytes that each is still to get.
    missing: Vec<usize>,
}

impl Subscribers {
    fn connect(address: SocketAddr, count: usize) -> Result<Self> {
        let poll = Poll::new()?;
        let mut streams = Vec::new();
        for number in 0..count {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(number), Interest::READABLE)?;
            streams.push(stream);
        }
        Ok(Subscribers { poll, missing: vec![0; count], streams })
    }

    /// The first one sends a message.
    fn say(&mut self, message: &[u8]) -> Result<()> {
        self.streams[0].write_all(message)
    }

    /// Waits until every one has so many bytes.
    fn receive(&mut self, bytes: usize) -> Result<()> {
        let (deadline, mut buffer) = (Instant::now() + TIMEOUT, [0; 64 << 10]);
        self.missing.fill(bytes);
        let mut waiting = self.missing.len();
        let mut events = Events::with_capacity(1024);
        while waiting > 0 {
            let rest = deadline.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(Error::other(format!("{waiting} subscribers have not got it in time")));
            }
            self.poll.poll(&mut events, Some(rest))?;
            for event in &events {
                let Token(number) = event.token();
                while self.missing[number] > 0 {
                    match self.streams[number].read(&mut buffer) {
                        Ok(0) => return Err(Error::other("a subscriber was let go")),
                        Ok(count) => self.missing[number] = self.missing[number].saturating_sub(count),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error),
                    }
                    waiting -= usize::from(self.missing[number] == 0);
                }
            }
        }
        Ok(())
    }
}
