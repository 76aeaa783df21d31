//! What it costs to serve requests by programs: `serve --exec` beside a bare pipe and a bare TCP echo, in turns.
//!
//! Three questions: one request at a time, what comes on top of a pipe's round trip and a socket's; many connections, what share of the rate
//! of bare programs is left; a burst on a pool that is too small, how long beside starting the missing programs bare.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use procfs::process::Process;

use crate::flood::{self, load};
use crate::machine::signed;
use crate::server::{OURS, Server, ServerSpec};
use crate::stats::Estimate;

/// Whatever takes longer has failed.
const TIMEOUT: Duration = Duration::from_secs(60);
const LINE: &[u8] = b"thirty bytes, their newline too\n";

/// Measures what programs as handlers cost
#[derive(Debug, Parser)]
#[command(bin_name = "scripts/programs.sh")]
pub(crate) struct Args {
    /// The server
    #[arg(long, value_name = "FILE")]
    tidemill: String,
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

pub(crate) fn run(args: &Args) -> Result<bool> {
    if args.others {
        beside_others(args)?;
    } else {
        one_at_a_time(args)?;
        many(args)?;
        burst(args)?;
    }
    Ok(true)
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
fn serve(args: &Args, command: &str, options: &[&str]) -> Result<Server> {
    let mut server = Command::new(&args.tidemill);
    Server::start(server.args(["serve", "0", "--log-level", "error", "--exec", command]).args(options))
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

/// The median of what `one` takes, in microseconds.
fn median(requests: usize, mut one: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut took = Vec::with_capacity(requests);
    for _ in 0..requests {
        let begun = Instant::now();
        one()?;
        took.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(middle(&took))
}

fn middle(values: &[f64]) -> f64 {
    Estimate::of(values).map_or(f64::NAN, |estimate| estimate.median)
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
    let server = serve(args, &args.trivial, &["--min-threads", "1", "--max-threads", "1"])?;
    let mut client = connect(server.address)?;
    let (mut pipes, mut sockets, mut served) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.turns {
        pipes.push(median(args.requests, || bare.ask(LINE))?);
        sockets.push(median(args.requests, || ask(&mut socket, LINE))?);
        served.push(median(args.requests, || ask(&mut client, LINE))?);
    }
    bare.end()?;
    let (pipe, socket, served) = (middle(&pipes), middle(&sockets), middle(&served));
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
    let server = serve(args, &args.trivial, &["--max-threads", &threads])?;
    let (mut bare, mut served) = (Vec::new(), Vec::new());
    for _ in 0..args.turns {
        let programs = (0..count).map(|_| Bare::start(&args.trivial)).collect::<Result<Vec<_>>>()?;
        bare.push(rate(programs, |program| program.ask(LINE))?);
        let clients = (0..count).map(|_| connect(server.address)).collect::<Result<Vec<_>>>()?;
        served.push(rate(clients, |client| ask(client, LINE))?);
    }
    let (bare, served) = (middle(&bare), middle(&served));
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
        let server = serve(args, &args.slow, &options)?;
        let mut clients = (0..count).map(|_| connect(server.address)).collect::<Result<Vec<_>>>()?;
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
    let (bare, served) = (middle(&bare), middle(&served));
    println!(
        "a burst of {count} on 2 programs: {served:.2} s, the missing {missing} started bare {bare:.2} s: {:.2}",
        served / bare
    );
    Ok(())
}

/// Servers that start a program for each connection, and ours, which starts one for each worker.
const OTHERS: [(&str, &str); 4] = [
    (OURS, "{tidemill} serve {port} --log-level error --exec"),
    ("socat", "socat TCP-LISTEN:{port},bind=127.0.0.1,fork,backlog=1024"),
    ("tcpserver", "tcpserver -q -H -R -l0 -c600 -b1024 127.0.0.1 {port}"),
    ("systemd-socket-activate", "systemd-socket-activate -l 127.0.0.1:{port} --inetd -a"),
];
/// What they start: an interpreter, as most such programs have.
const SCRIPT: &str = "#!/bin/sh\nexec perl -ne 'BEGIN { $| = 1 } print'\n";
/// What they are asked.
const ASKS: &str = "--request a-line-of-thirty-bytes-and-one --expect {line} --timeout 60s";
/// Clients at a time.
const CLIENTS: [usize; 3] = [1, 64, 500];
/// First replies at least, one after the other where there are fewer clients.
const FIRSTS: usize = 21;

fn beside_others(args: &Args) -> Result<()> {
    let script = std::env::temp_dir().join(format!("programs-{}.sh", std::process::id()));
    std::fs::write(&script, SCRIPT)?;
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let script = script.to_string_lossy().into_owned();
    println!("| server | clients | first reply, p50 | requests/s | processes | memory |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for clients in CLIENTS {
        for (name, command) in OTHERS {
            let spec = ServerSpec::other(name, &command.replace("{tidemill}", &args.tidemill), ASKS);
            let what = if name == "socat" { format!("EXEC:{script}") } else { script.clone() };
            let server = match spec.start(&[what], &[]) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    eprintln!("{name} is not installed");
                    continue;
                }
                server => server?,
            };
            // The generator counts from when it connects, with a connection for each request.
            let firsts = format!("{ASKS} -c {clients} -n {} --reconnect", clients.max(FIRSTS));
            let first = load(&args.tidemill, server.address, &firsts)?;
            let running = flood::start(
                &[],
                &args.tidemill,
                server.address,
                &format!("{ASKS} -c {clients} --warm-up 1s -d 2s"),
            )?;
            thread::sleep(Duration::from_secs(2));
            let (processes, mib) = weight(server.pid())?;
            let rate = flood::verified(running)?.requests_per_second;
            let first = first.latency_us.p50.unwrap_or(f64::NAN) / 1e3;
            println!("| {name} | {clients} | {first:.1} ms | {rate:.0} | {processes} | {mib:.0} MiB |");
        }
    }
    std::fs::remove_file(script)
}

/// Process `pid` and all that it has started: how many there are, and the memory that they have to themselves, in MiB.
fn weight(pid: u32) -> Result<(usize, f64)> {
    let (mut next, mut count, mut bytes) = (vec![pid], 0, 0);
    while let Some(pid) = next.pop() {
        // One that ends meanwhile is none of them.
        let Ok(process) = Process::new(signed(pid)?) else { continue };
        let children = |tasks: procfs::process::TasksIter| tasks.flatten().flat_map(|task| task.children());
        next.extend(process.tasks().into_iter().flat_map(children).flatten());
        let maps = process.smaps_rollup().ok().and_then(|rollup| rollup.memory_map_rollup.into_iter().next());
        bytes += maps.and_then(|map| map.extension.map.get("Pss").copied()).unwrap_or(0);
        count += 1;
    }
    Ok((count, bytes as f64 / f64::from(1 << 20)))
}
