//! What it costs to serve requests by programs: `serve --exec` beside a bare pipe and a bare TCP echo, in turns.
//!
//! Four questions: one request at a time, what comes on top of a pipe's round trip and a socket's; many connections, what share of the rate
//! of bare programs is left, and of a thread and a program for each connection and nothing else; a burst on a pool that is too small, how
//! long beside starting the missing programs bare; a command that reaches a program that is ready, how soon that answers.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use procfs::process::Process;

use crate::flood::{self, load};
use crate::gateways;
use crate::machine::signed;
use crate::server::{self, Known, OURS, Server, ServerSpec};
use crate::stats::{in_turns, median};

/// Whatever takes longer has failed.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
/// How long each rate is measured.
const RUN: Duration = Duration::from_secs(1);
const LINE: &[u8] = b"thirty bytes, their newline too\n";
/// Requests that a client sends at once where it does not wait for each reply.
const PACK: usize = 16;
/// Commands that reach a program, and programs kept ready for them.
const COMMANDS: usize = 20;
/// A program that speaks newline-delimited JSON-RPC, as a tool server does.
pub(crate) const TOOL: &str = r#"use JSON::PP; $| = 1; my $json = JSON::PP->new->canonical;
select undef, undef, undef, $ARGV[0] // 0;
while (my $line = <STDIN>) {
    my $call = $json->decode($line);
    next unless defined $call->{id};
    my $result = $call->{method} eq 'initialize'
        ? { protocolVersion => $call->{params}{protocolVersion}, capabilities => { tools => {} }, serverInfo => { name => 'tool', version => '1' } }
        : $call->{method} eq 'tools/list' ? { tools => [ { name => 'echo', inputSchema => { type => 'object' } } ] }
        : { content => [ { type => 'text', text => $call->{params}{arguments}{text} } ] };
    print $json->encode({ jsonrpc => '2.0', id => $call->{id}, result => $result }), "\n";
}
"#;

/// Measures what programs as handlers cost
#[derive(Debug, Parser)]
#[command(bin_name = "scripts/programs.sh")]
pub(crate) struct Args {
    /// The server
    #[arg(long, value_name = "FILE")]
    pub(crate) tidemill: String,
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

/// A program that answers each line with itself, and costs nothing.
const TRIVIAL: &str = "cat";
/// One that needs time to start, half a second of imports, as it were, of which a part is work; it answers a line when it has slept for
/// as many seconds as it says.
const SLOW: &str = r#"perl -e '$| = 1; my $until = 10 + (times)[0]; $n += $_ for 1 .. 200_000; select undef, undef, undef, 0.4; while (<STDIN>) { select undef, undef, undef, $_; print }'"#;

pub(crate) fn run(args: &Args) -> Result<bool> {
    if args.others {
        beside_others(args)?;
        gateways::measure(args)?;
    } else {
        one_at_a_time(args)?;
        many(args)?;
        burst(args)?;
        commands(args)?;
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
    let mut server = server::serve(&args.tidemill, "--log-level error");
    Server::start(server.args(["--exec", command]).args(options))
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
fn typical(requests: usize, mut one: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut took = Vec::with_capacity(requests);
    for _ in 0..requests {
        let begun = Instant::now();
        one()?;
        took.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&took))
}

fn one_at_a_time(args: &Args) -> Result<()> {
    let mut socket = connect(serve_bare(None)?)?;
    let mut bare = Bare::start(TRIVIAL)?;
    let server = serve(args, TRIVIAL, &["--min-threads", "1", "--max-threads", "1"])?;
    let mut client = connect(server.address)?;
    let figures = in_turns(
        args.turns,
        [
            &mut || typical(args.requests, || bare.ask(LINE)),
            &mut || typical(args.requests, || ask(&mut socket, LINE)),
            &mut || typical(args.requests, || ask(&mut client, LINE)),
        ],
    )?;
    let [pipe, socket, served] = figures.map(|figures| median(&figures));
    bare.end()?;
    println!(
        "one at a time, medians: pipe {pipe:.1} µs, socket {socket:.1} µs, served {served:.1} µs: {:.1} µs on top",
        served - pipe - socket
    );
    Ok(())
}

/// Does `each` with all of them at the same time, on a thread for each.
pub(crate) fn together<T: Send, R: Send>(
    of: impl ExactSizeIterator<Item = T>,
    each: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let barrier = Barrier::new(of.len());
    let begin = |it| {
        barrier.wait();
        each(it)
    };
    let begin = &begin;
    thread::scope(|scope| {
        let threads: Vec<_> = of.map(|it| scope.spawn(move || begin(it))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<R>>| {
            thread.join().unwrap_or_else(|_| Err(Error::other("a thread panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}

/// Requests a second of all of them for so long, each as fast as it can.
pub(crate) fn rate<T: Send>(
    of: &mut [T],
    length: Duration,
    one: impl Fn(&mut T) -> Result<()> + Sync,
) -> Result<f64> {
    let each = |it: &mut T| {
        let (begun, mut count) = (Instant::now(), 0);
        while begun.elapsed() < length {
            one(it)?;
            count += 1;
        }
        Ok(count)
    };
    let counts = together(of.iter_mut(), each)?;
    Ok(counts.into_iter().sum::<usize>() as f64 / length.as_secs_f64())
}

/// A server without what makes one: a thread for each connection, and a program if `command` says one, the two ends of a socket and of
/// a pipe one behind the other.
fn serve_bare(command: Option<&'static str>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let serve = move |mut stream: TcpStream| -> Result<()> {
        stream.set_nodelay(true)?;
        let mut program = command.map(Bare::start).transpose()?;
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return program.map_or(Ok(()), Bare::end);
            }
            match &mut program {
                Some(program) => {
                    program.ask(&buffer[..read])?;
                    stream.write_all(&program.line)?;
                }
                None => stream.write_all(&buffer[..read])?,
            }
        }
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream).map_err(|error| eprintln!("a bare server: {error}")));
        }
    });
    Ok(address)
}

fn many(args: &Args) -> Result<()> {
    let count = args.connections;
    let threads = count.to_string();
    let server = serve(args, TRIVIAL, &["--max-threads", &threads])?;
    let (echo, hop) = (serve_bare(None)?, serve_bare(Some(TRIVIAL))?);
    // Those of a bare server are there behind the first reply.
    let clients = |address| {
        let client = || {
            let mut client = connect(address)?;
            ask(&mut client, LINE)?;
            Ok(client)
        };
        (0..count).map(|_| client()).collect::<Result<Vec<_>>>()
    };
    let rate_of = |address, line: &[u8]| rate(&mut clients(address)?, RUN, |client| ask(client, line));
    let pack = LINE.repeat(PACK);
    let ways: [&mut dyn FnMut() -> Result<f64>; 5] = [
        &mut || {
            let mut programs = (0..count).map(|_| Bare::start(TRIVIAL)).collect::<Result<Vec<_>>>()?;
            let rate = rate(&mut programs, RUN, |program| program.ask(LINE))?;
            programs.into_iter().try_for_each(Bare::end).map(|()| rate)
        },
        &mut || rate_of(echo, LINE),
        &mut || rate_of(hop, LINE),
        &mut || rate_of(server.address, LINE),
        &mut || Ok(rate_of(server.address, &pack)? * PACK as f64),
    ];
    let [bare, echoed, hopped, served, packed] = in_turns(args.turns, ways)?.map(|rates| median(&rates));
    println!("{count} at a time, requests/s: bare programs {bare:.0}");
    let rows = [
        ("sockets alone, a thread each", echoed),
        ("a thread and a program each, socket and pipe", hopped),
        ("served", served),
        ("served, each client 16 requests at once", packed),
    ];
    for (what, rate) in rows {
        println!("  {what}: {rate:.0}: {:.2}", rate / bare);
    }
    println!("  served, of a thread and a program each: {:.2}", served / hopped);
    Ok(())
}

/// Until each of `count` has answered.
fn burst(args: &Args) -> Result<()> {
    let (count, line) = (args.connections, b"0.2\n");
    let missing = count - 2;
    let mut bare = || {
        let begun = Instant::now();
        let mut programs = (0..missing).map(|_| Bare::start(SLOW)).collect::<Result<Vec<_>>>()?;
        for program in &mut programs {
            program.input.write_all(line)?;
        }
        for program in &mut programs {
            program.line.clear();
            program.output.read_until(b'\n', &mut program.line)?;
        }
        let took = begun.elapsed().as_secs_f64();
        programs.into_iter().try_for_each(Bare::end).map(|()| took)
    };
    let mut served = || {
        let options = ["--min-threads", "2", "--max-threads", "64", "--exec-spare", "0"];
        let server = serve(args, SLOW, &options)?;
        let mut clients = (0..count).map(|_| connect(server.address)).collect::<Result<Vec<_>>>()?;
        // Both are there.
        clients[..2].iter_mut().try_for_each(|client| ask(client, b"0\n"))?;
        let begun = Instant::now();
        clients.iter_mut().try_for_each(|client| client.write_all(line))?;
        clients.iter_mut().try_for_each(|client| client.read_exact(&mut [0; 4]))?;
        Ok(begun.elapsed().as_secs_f64())
    };
    let figures = in_turns(args.turns.min(3), [&mut bare, &mut served])?;
    let [bare, served] = figures.map(|figures| median(&figures));
    println!(
        "a burst of {count} on 2 programs: {served:.2} s, the missing {missing} started bare {bare:.2} s: {:.2}",
        served / bare
    );
    Ok(())
}

/// A file that is gone with this.
pub(crate) struct Script(pub(crate) PathBuf);

impl Script {
    pub(crate) fn new(name: &str, content: &str) -> Result<Script> {
        let path = std::env::temp_dir().join(format!("programs-{}-{name}", std::process::id()));
        std::fs::write(&path, content)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(Script(path))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// From the start of a command to its first reply, in milliseconds.
fn first_reply(command: &str) -> Result<f64> {
    let begun = Instant::now();
    let mut program = Bare::start(command)?;
    program.input.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":{}}\n")?;
    program.output.read_until(b'\n', &mut program.line)?;
    let took = begun.elapsed();
    if !program.line.starts_with(b"{\"id\":1,") {
        return Err(Error::other("a wrong reply of a command"));
    }
    program.end()?;
    Ok(took.as_secs_f64() * 1e3)
}

/// Clients that only know how to start a command, which reaches a program that was started before.
fn commands(args: &Args) -> Result<()> {
    let tool = Script::new("tool.pl", TOOL)?;
    let command = format!("perl {} 0.5", tool.0.display());
    let bare = (0..3).map(|_| first_reply(&command)).collect::<Result<Vec<_>>>()?;
    let bare = median(&bare);
    for mode in ["shared", "leased"] {
        let spare = COMMANDS.to_string();
        let limits = ["--min-threads", "1", "--max-threads", "64"];
        let options = [&["--exec-mode", mode, "--exec-spare", &spare], &limits[..]].concat();
        let server = serve(args, &command, &options)?;
        // By then all of them wait for input.
        thread::sleep(Duration::from_secs_f64(bare / 1e3 * 5.0));
        let reach = format!("{} client --pipe {}", args.tidemill, server.address);
        let mut took = (0..COMMANDS).map(|_| first_reply(&reach)).collect::<Result<Vec<_>>>()?;
        took.sort_by(f64::total_cmp);
        println!(
            "a command that reaches a program ({mode}), first reply: p50 {:.1} ms, most {:.1} ms; the program alone {bare:.0} ms",
            took[COMMANDS / 2],
            took[COMMANDS - 1]
        );
    }
    Ok(())
}

/// Servers that start a program for each connection, and ours, which starts one for each worker.
const OTHERS: [Known; 4] = [
    (OURS, "{tidemill} serve {port} --log-level error --exec", ASKS),
    ("socat", "socat TCP-LISTEN:{port},bind=127.0.0.1,fork,backlog=1024", ASKS),
    ("tcpserver", "tcpserver -q -H -R -l0 -c600 -b1024 127.0.0.1 {port}", ASKS),
    ("systemd-socket-activate", "systemd-socket-activate -l 127.0.0.1:{port} --inetd -a", ASKS),
];
/// What they start: an interpreter, as most such programs have.
const SCRIPT: &str = "#!/bin/sh\nexec perl -ne 'BEGIN { $| = 1 } print'\n";
/// What they are asked.
const ASKS: &str = "--request a-line-of-thirty-bytes-and-one --expect {line} --timeout 60s";
/// Clients at a time.
const CLIENTS: [usize; 3] = [1, 64, 500];
/// First replies at least, one after the other where there are fewer clients.
pub(crate) const FIRSTS: usize = 21;

/// What a server does with so many clients: the median first reply in ms, requests a second, and its [`weight`].
pub(crate) type Row = (f64, f64, (usize, f64));

/// A table of servers, each with the arguments that `words` gives it behind its command, measured by `row`.
pub(crate) fn table(
    args: &Args,
    head: &str,
    servers: &[Known],
    words: impl Fn(&str) -> Vec<String>,
    row: impl Fn(&str, &Server, usize) -> Result<Row>,
) -> Result<()> {
    println!("| {head} | clients | first reply, p50 | requests/s | processes | memory |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for clients in CLIENTS {
        for known in servers {
            let name = known.0;
            let server = match ServerSpec::of(*known, &args.tidemill)?.start(&words(name), &[]) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    eprintln!("{name} is not installed");
                    continue;
                }
                server => server?,
            };
            match row(name, &server, clients) {
                Ok((first, rate, (processes, mib))) => println!(
                    "| {name} | {clients} | {first:.1} ms | {rate:.0} | {processes} | {mib:.0} MiB |"
                ),
                // What one cannot do is a result, too.
                Err(error) => println!("| {name} | {clients} | fails: {error} | | | |"),
            }
        }
    }
    Ok(())
}

fn beside_others(args: &Args) -> Result<()> {
    let file = Script::new("echo.sh", SCRIPT)?;
    let script = file.0.display().to_string();
    let words = |name: &str| vec![if name == "socat" { format!("EXEC:{script}") } else { script.clone() }];
    table(args, "server", &OTHERS, words, |_, server, clients| {
        // The generator counts from when it connects, with a connection for each request.
        let firsts = format!("{ASKS} -c {clients} -n {} --reconnect", clients.max(FIRSTS));
        let first = load(&args.tidemill, server.address, &firsts)?.latency_us.p50.unwrap_or(f64::NAN) / 1e3;
        let options = format!("{ASKS} -c {clients} --warm-up 1s -d 2s");
        let running = flood::start(&[], &args.tidemill, server.address, &options)?;
        thread::sleep(Duration::from_secs(2));
        let weight = weight(server.pid())?;
        Ok((first, flood::verified(running)?.requests_per_second, weight))
    })
}

/// Process `pid` and all that it has started: how many there are, and the memory that they have to themselves, in MiB.
pub(crate) fn weight(pid: u32) -> Result<(usize, f64)> {
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
