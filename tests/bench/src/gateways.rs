//! Gateways for JSON-RPC beside `serve --exec`: what they do with the same program, which speaks it by lines, for clients that reach them
//! as they offer it: ours by lines, the others by HTTP.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::programs::{Args, CLIENTS, FIRSTS, Script, TIMEOUT, TOOL, connect, middle, weight};
use crate::server::{OURS, Server, ServerSpec};

/// How long they ask.
const RUN: Duration = Duration::from_secs(2);
const HELLO: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-03-26","capabilities":{},"clientInfo":{"name":"programs","version":"1"}}}"#;
const HELLO_DONE: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"thirty bytes"}}}"#;
/// What the reply to it has in it, whoever passes it on.
const CALLED: &str = "thirty bytes";

/// Each, and what comes behind its command: the program as one word, or its words.
const GATEWAYS: [(&str, &str); 4] = [
    (OURS, "{tidemill} serve {port} --log-level error --exec"),
    (LEASED, "{tidemill} serve {port} --log-level error --exec-mode leased --max-threads 600 --exec"),
    (
        "supergateway",
        "supergateway --port {port} --outputTransport streamableHttp --stateful --logLevel none --stdio",
    ),
    (PROXY, "mcp-proxy --port {port} --log-level ERROR --"),
];
const LEASED: &str = "tidemill, leased";
const PROXY: &str = "mcp-proxy";

pub(crate) fn measure(args: &Args) -> Result<()> {
    let tool = Script::new("tool.pl", TOOL)?;
    let program = format!("perl {}", tool.0.display());
    println!("\n| server, JSON-RPC | clients | first reply, p50 | requests/s | processes | memory |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for clients in CLIENTS {
        for (name, command) in GATEWAYS {
            let spec = ServerSpec::other(name, &command.replace("{tidemill}", &args.tidemill), "");
            let words = match name {
                PROXY => program.split(' ').map(str::to_owned).collect(),
                _ => vec![program.clone()],
            };
            let server = match spec.start(&words, &[]) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    eprintln!("{name} is not installed");
                    continue;
                }
                server => server?,
            };
            let row = match name {
                OURS | LEASED => row::<Calls>(&server, clients),
                _ => row::<Posts>(&server, clients),
            };
            // What one cannot do is a result, too.
            let row = row.unwrap_or_else(|error| format!("fails: {error} | | | |"));
            println!("| {name} | {clients} | {row}");
        }
    }
    Ok(())
}

/// A client of a kind.
trait Client: Sized + Send {
    /// Up to its first reply.
    fn begin(address: SocketAddr) -> Result<Self>;
    fn ask(&mut self) -> Result<()>;
}

/// Calls a tool, a line each.
struct Calls(BufReader<TcpStream>, String);

impl Calls {
    fn call(&mut self, line: &str, replied: &str) -> Result<()> {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes())?;
        self.1.clear();
        self.0.read_line(&mut self.1)?;
        if self.1.contains(replied) { Ok(()) } else { Err(Error::other(self.1.clone())) }
    }
}

impl Client for Calls {
    fn begin(address: SocketAddr) -> Result<Calls> {
        let mut client = Calls(BufReader::new(connect(address)?), String::new());
        client.call(HELLO, "serverInfo")?;
        Ok(client)
    }

    fn ask(&mut self) -> Result<()> {
        self.call(CALL, CALLED)
    }
}

/// The same by HTTP, a request each, on one connection (`streamable HTTP`).
struct Posts {
    address: SocketAddr,
    stream: BufReader<TcpStream>,
    session: String,
    body: Vec<u8>,
}

impl Posts {
    fn post(&mut self, call: &str) -> Result<()> {
        let session = &self.session;
        let head = format!(
            "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n{session}Content-Length: {}\r\n\r\n",
            call.len()
        );
        self.stream.get_mut().write_all(format!("{head}{call}").as_bytes())?;
        let (mut line, mut length, mut is_chunked) = (String::new(), 0, false);
        let mut read_line = |stream: &mut BufReader<TcpStream>| -> Result<String> {
            line.clear();
            stream.read_line(&mut line)?;
            line.ends_with("\r\n")
                .then(|| line.trim_end().to_owned())
                .ok_or_else(|| Error::other("a reply is cut off"))
        };
        let status = read_line(&mut self.stream)?;
        if !status.starts_with("HTTP/1.1 2") {
            return Err(Error::other(status));
        }
        loop {
            let field = read_line(&mut self.stream)?;
            let Some((name, value)) = field.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().map_err(Error::other)?,
                "transfer-encoding" => is_chunked = true,
                "mcp-session-id" => self.session = format!("mcp-session-id: {}\r\n", value.trim()),
                _ => {}
            }
        }
        self.body.clear();
        loop {
            if is_chunked {
                length = usize::from_str_radix(&read_line(&mut self.stream)?, 16).map_err(Error::other)?;
            }
            let at = self.body.len();
            self.body.resize(at + length, 0);
            self.stream.read_exact(&mut self.body[at..])?;
            if !is_chunked {
                return Ok(());
            }
            read_line(&mut self.stream)?;
            if length == 0 {
                return Ok(());
            }
        }
    }

    fn expect(&self, replied: &str) -> Result<()> {
        let body = String::from_utf8_lossy(&self.body);
        if body.contains(replied) { Ok(()) } else { Err(Error::other(body.into_owned())) }
    }
}

impl Client for Posts {
    fn begin(address: SocketAddr) -> Result<Posts> {
        let stream = BufReader::new(connect(address)?);
        let mut client = Posts { address, stream, session: String::new(), body: Vec::new() };
        client.post(HELLO)?;
        client.expect("serverInfo")?;
        client.post(HELLO_DONE)?;
        Ok(client)
    }

    fn ask(&mut self) -> Result<()> {
        // A connection that was idle may be closed, while the others began: Node.js does so after 5 s.
        if self.post(CALL).is_err() {
            self.stream = BufReader::new(connect(self.address)?);
            self.post(CALL)?;
        }
        self.expect(CALLED)
    }
}

/// Measures one of them.
fn row<C: Client>(server: &Server, clients: usize) -> Result<String> {
    // It listens before it serves.
    let deadline = Instant::now() + TIMEOUT;
    while let Err(error) = C::begin(server.address) {
        if Instant::now() >= deadline {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(10));
    }
    let barrier = Barrier::new(clients + 1);
    let each = || -> Result<(Duration, usize)> {
        barrier.wait();
        let begun = Instant::now();
        let first = C::begin(server.address).map(|client| (begun.elapsed(), client));
        // All are there.
        barrier.wait();
        // Whoever fails still meets the others.
        let done = first.and_then(|(first, mut client)| {
            let (begun, mut count) = (Instant::now(), 0);
            while begun.elapsed() < RUN {
                client.ask()?;
                count += 1;
            }
            Ok((first, count, client))
        });
        // It is weighed while they are.
        barrier.wait();
        barrier.wait();
        done.map(|(first, count, _)| (first, count))
    };
    let (mut firsts, mut count, mut weighed) = (Vec::new(), 0, Ok((0, 0.0)));
    // One is no median.
    for _ in 0..FIRSTS.saturating_sub(clients) {
        let begun = Instant::now();
        C::begin(server.address)?;
        firsts.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let mut failed = None;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(each)).collect();
        barrier.wait();
        barrier.wait();
        barrier.wait();
        weighed = weight(server.pid());
        barrier.wait();
        for thread in threads {
            match thread.join().unwrap_or_else(|_| Err(Error::other("a thread panicked"))) {
                Ok((first, its)) => {
                    firsts.push(first.as_secs_f64() * 1e3);
                    count += its;
                }
                Err(error) => failed = Some(error),
            }
        }
    });
    let (processes, mib) = weighed?;
    let rate = count as f64 / RUN.as_secs_f64();
    let first = middle(&firsts);
    failed.map_or_else(|| Ok(format!("{first:.1} ms | {rate:.0} | {processes} | {mib:.0} MiB |")), Err)
}
