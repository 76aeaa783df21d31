//! Gateways for JSON-RPC beside `serve --exec`: what they do with the same program, which speaks it by lines, for clients that reach them
//! as they offer it: ours by lines, the others by HTTP.

use std::io::{Error, Result};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::http::HeaderValue;

use crate::programs::{Args, FIRSTS, Row, Script, TIMEOUT, TOOL, rate, table, together, weight};
use crate::server::{Known, OURS, Server};
use crate::stats::median;
use crate::wait::wait_for;

/// How long they ask.
const RUN: Duration = Duration::from_secs(2);
const HELLO: &str = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-03-26","capabilities":{},"clientInfo":{"name":"programs","version":"1"}}}"#;
const HELLO_DONE: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"text":"thirty bytes"}}}"#;
/// What the reply to it has in it, whoever passes it on.
const CALLED: &str = "thirty bytes";
/// By which the gateways tell their clients apart.
const SESSION: &str = "mcp-session-id";

/// Each, and what comes behind its command: the program as one word, or its words.
const GATEWAYS: [Known; 4] = [
    (OURS, "{tidemill} serve {port} --log-level error --exec", ""),
    (LEASED, "{tidemill} serve {port} --log-level error --exec-mode leased --max-threads 600 --exec", ""),
    (
        "supergateway",
        "supergateway --port {port} --outputTransport streamableHttp --stateful --logLevel none --stdio",
        "",
    ),
    (PROXY, "mcp-proxy --port {port} --log-level ERROR --", ""),
];
const LEASED: &str = "tidemill, leased";
const PROXY: &str = "mcp-proxy";

pub(crate) fn measure(args: &Args) -> Result<()> {
    let tool = Script::new("tool.pl", TOOL)?;
    let program = format!("perl {}", tool.0.display());
    let words = |name: &str| match name {
        PROXY => program.split(' ').map(str::to_owned).collect(),
        _ => vec![program.clone()],
    };
    println!();
    table(args, "server, JSON-RPC", &GATEWAYS, words, |name, server, clients| match name {
        OURS | LEASED => row::<Calls>(server, clients),
        _ => row::<Posts>(server, clients),
    })
}

/// A client of a kind.
trait Client: Sized + Send {
    /// Up to its first reply.
    fn begin(address: SocketAddr) -> Result<Self>;
    fn ask(&mut self) -> Result<()>;
}

/// Calls a tool, a line each.
struct Calls(tidemill::client::Client);

impl Calls {
    fn call(&mut self, line: &str, replied: &str) -> Result<()> {
        self.0.send(format!("{line}\n").as_bytes())?;
        let reply = String::from_utf8_lossy(&self.0.read_line()?).into_owned();
        if reply.contains(replied) { Ok(()) } else { Err(Error::other(reply)) }
    }
}

impl Client for Calls {
    fn begin(address: SocketAddr) -> Result<Calls> {
        let mut client = Calls(tidemill::client::Client::connect(address, TIMEOUT)?);
        client.call(HELLO, "serverInfo")?;
        Ok(client)
    }

    fn ask(&mut self) -> Result<()> {
        self.call(CALL, CALLED)
    }
}

/// The same by HTTP, a request each, on one connection (`streamable HTTP`).
struct Posts {
    agent: Agent,
    url: String,
    session: Option<HeaderValue>,
}

impl Posts {
    fn post(&mut self, call: &str, replied: &str) -> Result<()> {
        let mut request = self.agent.post(&self.url).content_type("application/json");
        request = request.header("Accept", "application/json, text/event-stream");
        if let Some(session) = &self.session {
            request = request.header(SESSION, session);
        }
        let mut reply = request.send(call).map_err(ureq::Error::into_io)?;
        if let Some(session) = reply.headers().get(SESSION) {
            self.session = Some(session.clone());
        }
        let body = reply.body_mut().read_to_string().map_err(ureq::Error::into_io)?;
        if body.contains(replied) { Ok(()) } else { Err(Error::other(body)) }
    }
}

impl Client for Posts {
    fn begin(address: SocketAddr) -> Result<Posts> {
        let agent = Agent::config_builder().timeout_global(Some(TIMEOUT)).build().into();
        let mut client = Posts { agent, url: format!("http://{address}/mcp"), session: None };
        client.post(HELLO, "serverInfo")?;
        client.post(HELLO_DONE, "")?;
        Ok(client)
    }

    fn ask(&mut self) -> Result<()> {
        // A connection that was idle may be closed, while the others began: Node.js does so after 5 s.
        self.post(CALL, CALLED).or_else(|_| self.post(CALL, CALLED))
    }
}

/// Measures one of them.
fn row<C: Client>(server: &Server, clients: usize) -> Result<Row> {
    // It listens before it serves.
    wait_for("it serves", TIMEOUT, || C::begin(server.address).is_ok())?;
    let begin = |_| {
        let begun = Instant::now();
        let client = C::begin(server.address)?;
        Ok((begun.elapsed().as_secs_f64() * 1e3, client))
    };
    // One is no median.
    let more = (0..FIRSTS.saturating_sub(clients)).map(|number| Ok(begin(number)?.0));
    let mut firsts = more.collect::<Result<Vec<f64>>>()?;
    let (its, mut clients): (Vec<f64>, Vec<C>) = together(0..clients, begin)?.into_iter().unzip();
    firsts.extend(its);
    let rate = rate(&mut clients, RUN, C::ask)?;
    // It is weighed while they are there.
    Ok((median(&firsts), rate, weight(server.pid())?))
}
