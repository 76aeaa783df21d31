//! What it costs to serve requests by programs: `serve --exec` beside a bare pipe and a bare TCP echo, in turns.
//!
//! Three questions: one request at a time, what comes on top of a pipe's round trip and a socket's; many connections, what share of the rate
//! of bare programs is left; a burst on a pool that is too small, how long beside starting the missing programs bare.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that tells what it has measured")]

use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

/// Whatever takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(60);
const LINE: &[u8] = b"thirty bytes, their newline too\n";

/// Measures what programs as handlers cost
#[derive(Debug, Parser)]
#[command(name = "scripts/programs.sh")]
struct Args {
    /// The server
    #[arg(long, value_name = "FILE")]
    tidemill: PathBuf,
    /// A program that answers each line with itself, and costs nothing
    #[arg(long, value_name = "COMMAND", default_value = "cat")]
    trivial: String,
    /// A program that needs time to start; it answers a line when it has slept for as many seconds as it says
    #[arg(long, value_name = "COMMAND", default_value = SLOW)]
    slow: String,
    /// Requests of a turn, one at a time
    #[arg(long, value_name = "N", default_value_t = 5_000)]
    requests: usize,
    /// Connections of the second question, and requests of the burst
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// Turns
    #[arg(long, value_name = "N", default_value_t = 7)]
    turns: usize,
    /// Measures servers of other makes beside it instead, those that are installed: a table
    #[arg(long)]
    others: bool,
}

/// Half a second of imports, as it were, of which a part is work.
const SLOW: &str = r#"perl -e '$| = 1; my $until = 10 + (times)[0]; $n += $_ for 1 .. 200_000; select undef, undef, undef, 0.4; while (<STDIN>) { select undef, undef, undef, $_; print }'"#;

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.others {
        true => beside_others(&args),
        false => one_at_a_time(&args).and_then(|()| many(&args)).and_then(|()| burst(&args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("programs: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A program without a server.
struct Bare {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    line: Vec<u8>,
}

impl Bare {
    fn start(command: &str) -> Result<Bare> {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {command}")]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err(Error::other("no pipes")) };
        Ok(Bare { child, input, output: BufReader::new(output), line: Vec::new() })
    }

    fn ask(&mut self, line: &[u8]) -> Result<()> {
        self.input.write_all(line)?;
        self.line.clear();
        self.output.read_until(b'\n', &mut self.line)?;
        if self.line == line { Ok(()) } else { Err(Error::other("a wrong reply of a program")) }
    }

    fn end(mut self) -> Result<()> {
        drop(self.input);
        self.child.wait().map(drop)
    }
}

/// A server of programs.
struct Served {
    child: Child,
    address: SocketAddr,
}

impl Served {
    fn start(args: &Args, command: &str, options: &[&str]) -> Result<Served> {
        let mut server = Command::new(&args.tidemill);
        server.args(["serve", "0", "--log-level", "error", "--exec", command]).args(options);
        let mut child = server.stdout(Stdio::piped()).stdin(Stdio::null()).spawn()?;
        let output = child.stdout.take().ok_or_else(|| Error::other("no pipe"))?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim_end().strip_prefix("listening on ").and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| Error::other("the server did not start"))?;
        Ok(Served { child, address })
    }

    fn connect(&self) -> Result<TcpStream> {
        connect(self.address)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, line: &[u8]) -> Result<()> {
    stream.write_all(line)?;
    let mut reply = vec![0; line.len()];
    stream.read_exact(&mut reply)?;
    if reply == line { Ok(()) } else { Err(Error::other(String::from_utf8_lossy(&reply).into_owned())) }
}

/// The median of what `one` takes.
fn median(requests: usize, mut one: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut took = Vec::with_capacity(requests);
    for _ in 0..requests {
        let begun = Instant::now();
        one()?;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    Ok(took[requests / 2].as_secs_f64() * 1e6)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn one_at_a_time(args: &Args) -> Result<()> {
    let echo = TcpListener::bind("127.0.0.1:0")?;
    let address = echo.local_addr()?;
    thread::spawn(move || {
        let Ok((mut stream, _)) = echo.accept() else { return };
        drop(stream.set_nodelay(true));
        let mut buffer = [0; 4096];
        while let Ok(read) = stream.read(&mut buffer)
            && read > 0
            && stream.write_all(&buffer[..read]).is_ok()
        {}
    });
    let mut socket = connect(address)?;
    let mut bare = Bare::start(&args.trivial)?;
    let server = Served::start(args, &args.trivial, &["--min-threads", "1", "--max-threads", "1"])?;
    let mut client = server.connect()?;
    let (mut pipes, mut sockets, mut served) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.turns {
        pipes.push(median(args.requests, || bare.ask(LINE))?);
        sockets.push(median(args.requests, || ask(&mut socket, LINE))?);
        served.push(median(args.requests, || ask(&mut client, LINE))?);
    }
    bare.end()?;
    let (pipe, socket, served) = (middle(pipes), middle(sockets), middle(served));
    println!(
        "one at a time, medians: pipe {pipe:.1} µs, socket {socket:.1} µs, served {served:.1} µs: {:.1} µs on top",
        served - pipe - socket
    );
    Ok(())
}

/// Requests a second of `count` threads for a second.
fn rate<T: Send>(of: Vec<T>, one: impl Fn(&mut T) -> Result<()> + Sync) -> Result<f64> {
    let barrier = Barrier::new(of.len());
    let each = |mut it: T| -> Result<usize> {
        barrier.wait();
        let (begun, mut count) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(1) {
            one(&mut it)?;
            count += 1;
        }
        Ok(count)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = of.into_iter().map(|it| scope.spawn(|| each(it))).collect();
        let counts =
            threads.into_iter().map(|thread| thread.join().map_err(|_| Error::other("a thread panicked"))?);
        Ok(counts.sum::<Result<usize>>()? as f64)
    })
}

fn many(args: &Args) -> Result<()> {
    let count = args.connections;
    let threads = count.to_string();
    let server = Served::start(args, &args.trivial, &["--max-threads", &threads])?;
    let (mut bare, mut served) = (Vec::new(), Vec::new());
    for _ in 0..args.turns {
        let programs = (0..count).map(|_| Bare::start(&args.trivial)).collect::<Result<Vec<_>>>()?;
        bare.push(rate(programs, |program| program.ask(LINE))?);
        let clients = (0..count).map(|_| server.connect()).collect::<Result<Vec<_>>>()?;
        served.push(rate(clients, |client| ask(client, LINE))?);
    }
    let (bare, served) = (middle(bare), middle(served));
    println!(
        "{count} at a time, requests/s: bare programs {bare:.0}, served {served:.0}: {:.2}",
        served / bare
    );
    Ok(())
}

/// Until each of `count` has answered.
fn burst(args: &Args) -> Result<()> {
    let (count, line) = (args.connections, b"0.2\n");
    let missing = count - 2;
    let (mut bare, mut served) = (Vec::new(), Vec::new());
    for _ in 0..args.turns.min(3) {
        let begun = Instant::now();
        let mut programs = (0..missing).map(|_| Bare::start(&args.slow)).collect::<Result<Vec<_>>>()?;
        for program in &mut programs {
            program.input.write_all(line)?;
        }
        for program in &mut programs {
            program.line.clear();
            program.output.read_until(b'\n', &mut program.line)?;
        }
        bare.push(begun.elapsed().as_secs_f64());
        programs.into_iter().try_for_each(Bare::end)?;

        let options = ["--min-threads", "2", "--max-threads", "64", "--exec-spare", "0"];
        let server = Served::start(args, &args.slow, &options)?;
        let mut clients = (0..count).map(|_| server.connect()).collect::<Result<Vec<_>>>()?;
        // Both are there.
        for client in &mut clients[..2] {
            ask(client, b"0\n")?;
        }
        let begun = Instant::now();
        for client in &mut clients {
            client.write_all(line)?;
        }
        for client in &mut clients {
            client.read_exact(&mut [0; 4])?;
        }
        served.push(begun.elapsed().as_secs_f64());
    }
    let (bare, served) = (middle(bare), middle(served));
    println!(
        "a burst of {count} on 2 programs: {served:.2} s, the missing {missing} started bare {bare:.2} s: {:.2}",
        served / bare
    );
    Ok(())
}

/// What the others start for each connection, and tidemill for each worker: an interpreter, as most such programs have.
const SCRIPT: &str = "#!/bin/sh\nexec perl -ne 'BEGIN { $| = 1 } print'\n";
/// Clients at a time.
const CLIENTS: [usize; 3] = [1, 64, 500];
/// First replies at least, one after the other where there are fewer clients.
const FIRSTS: usize = 21;
/// How long they ask.
const RUN: Duration = Duration::from_secs(2);

/// A server of another make, or ours, while it is measured.
struct Other {
    child: Child,
    address: SocketAddr,
}

impl Other {
    /// `None`: it is not installed.
    fn start(name: &str, script: &str, args: &Args) -> Result<Option<Other>> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let listen = port.to_string();
        let mut command = match name {
            "tidemill" => {
                let mut command = Command::new(&args.tidemill);
                command.args(["serve", &listen, "--log-level", "error", "--exec", script]);
                command
            }
            "socat" => {
                let mut command = Command::new("socat");
                command
                    .arg(format!("TCP-LISTEN:{listen},bind=127.0.0.1,fork,backlog=1024"))
                    .arg(format!("EXEC:{script}"));
                command
            }
            "tcpserver" => {
                let mut command = Command::new("tcpserver");
                command.args(["-q", "-H", "-R", "-l0", "-c600", "-b1024", "127.0.0.1", &listen, script]);
                command
            }
            _ => {
                let mut command = Command::new("systemd-socket-activate");
                command.args(["-l", &format!("127.0.0.1:{listen}"), "--inetd", "-a", script]);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let other = Other { child, address: ([127, 0, 0, 1], port).into() };
        let deadline = Instant::now() + TIMEOUT;
        while connect(other.address).and_then(|mut stream| ask(&mut stream, LINE)).is_err() {
            if Instant::now() >= deadline {
                return Err(Error::other(format!("{name} does not serve")));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Some(other))
    }

    /// Processes that serve, and the memory that they have to themselves, in MiB.
    fn weight(&self) -> (usize, f64) {
        let (mut all, mut next) = (Vec::new(), vec![self.child.id()]);
        while let Some(id) = next.pop() {
            all.push(id);
            let Ok(threads) = std::fs::read_dir(format!("/proc/{id}/task")) else { continue };
            for thread in threads.flatten() {
                let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
                next.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
            }
        }
        let kib = |id: &u32| -> u64 {
            let rollup = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
            let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
            pss.and_then(|pss| pss.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
        };
        (all.len(), all.iter().map(kib).sum::<u64>() as f64 / 1024.0)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn beside_others(args: &Args) -> Result<()> {
    let script = std::env::temp_dir().join(format!("programs-{}.sh", std::process::id()));
    std::fs::write(&script, SCRIPT)?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let script = script.to_string_lossy().into_owned();
    println!("| server | clients | first reply, p50 | requests/s | processes | memory |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for clients in CLIENTS {
        for name in ["tidemill", "socat", "tcpserver", "systemd-socket-activate"] {
            let Some(other) = Other::start(name, &script, args)? else {
                eprintln!("{name} is not installed");
                continue;
            };
            let barrier = Barrier::new(clients + 1);
            let each = || -> Result<(Duration, usize)> {
                barrier.wait();
                let begun = Instant::now();
                let first = connect(other.address).and_then(|mut stream| {
                    ask(&mut stream, LINE)?;
                    Ok((begun.elapsed(), stream))
                });
                // All are there.
                barrier.wait();
                // Whoever fails still meets the others.
                let done = first.and_then(|(first, mut stream)| {
                    let (begun, mut count) = (Instant::now(), 0);
                    while begun.elapsed() < RUN {
                        ask(&mut stream, LINE)?;
                        count += 1;
                    }
                    Ok((first, count, stream))
                });
                // It is weighed while they are.
                barrier.wait();
                barrier.wait();
                done.map(|(first, count, _)| (first, count))
            };
            let (mut firsts, mut count, mut weight) = (Vec::new(), 0, (0, 0.0));
            // One is no median.
            for _ in 0..FIRSTS.saturating_sub(clients) {
                let begun = Instant::now();
                connect(other.address).and_then(|mut stream| ask(&mut stream, LINE))?;
                firsts.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            thread::scope(|scope| -> Result<()> {
                let threads: Vec<_> = (0..clients).map(|_| scope.spawn(each)).collect();
                barrier.wait();
                barrier.wait();
                barrier.wait();
                weight = other.weight();
                barrier.wait();
                for thread in threads {
                    let (first, its) = thread.join().map_err(|_| Error::other("a thread panicked"))??;
                    firsts.push(first.as_secs_f64() * 1e3);
                    count += its;
                }
                Ok(())
            })?;
            println!(
                "| {name} | {clients} | {:.1} ms | {} | {} | {:.0} MiB |",
                middle(firsts),
                (count as f64 / RUN.as_secs_f64()) as u64,
                weight.0,
                weight.1
            );
        }
    }
    std::fs::remove_file(script)
}
