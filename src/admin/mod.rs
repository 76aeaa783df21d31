//! The admin address: what a server tells about itself by HTTP, to monitors, load balancers and people.
//!
//! A service of its own that looks on (`reactor::aside`), whose requests are all handled on the event loop: so it answers while every
//! worker is stuck, and needs no thread. It reads what the threads share (`overview`); what only the reactor knows, who a connection
//! is and what it holds, it asks for (`mail::Survey`). It changes nothing. `http` is the protocol, `prometheus` and `json` the forms.
//! A further path is a line in [`Admin::answer`]. Held by the `admin` tests.

mod http;
mod json;
mod prometheus;

use std::sync::Arc;

use crate::address::Address;
use crate::framing::Framing;
use crate::mail::{Findings, Mail, Post, Survey};
use crate::overview::Overview;
use crate::service::{Farewell, Handler, Kind, Reply, Request};
use http::{Answer, Asked, Heads, Status};

/// Rows of `/connections.json` that are given if nothing is said, and at the most.
const DEFAULT_TOP: usize = 20;
const MAX_TOP: usize = 1000;

/// The page that draws the pool live, in one piece: it asks for `/stats.json` and `/connections.json`, and nothing else.
const PAGE: &str = concat!(
    include_str!("page/head.html"),
    include_str!("../page/shared.css"),
    include_str!("page/page.css"),
    include_str!("page/body.html"),
    include_str!("../page/shared.js"),
    include_str!("page/page.js"),
    "</script>\n</body>\n</html>\n"
);

/// The service.
#[derive(Debug)]
pub(crate) struct Admin {
    overview: Arc<Overview>,
    /// It is reached by others than those on this machine, and by names that are not known here.
    by_any_name: bool,
}

impl Admin {
    /// `address`: where it listens. On the loopback interface nobody is answered who has come by another's name: that is a page in a
    /// browser on this machine, whose name was made to stand for it. Monitors elsewhere may ask by any.
    pub(crate) fn new(overview: Arc<Overview>, address: Option<&Address>) -> Admin {
        let ip = address.and_then(Address::ip);
        Admin { overview, by_any_name: !ip.is_some_and(|ip| ip.to_canonical().is_loopback()) }
    }

    /// Answers at once, or asks the reactor first.
    fn answer(&self, asked: &Asked<'_>, reply: &mut Reply<'_>) {
        let overview = &*self.overview;
        let answer = match asked.path {
            "/" => Answer { status: Status::Ok, content_type: "text/html; charset=utf-8", body: PAGE.into() },
            "/metrics" => Answer {
                status: Status::Ok,
                content_type: prometheus::CONTENT_TYPE,
                body: prometheus::text(overview).into_bytes(),
            },
            "/healthz" => Answer::text(Status::Ok, "ok"),
            "/readyz" => match overview.not_ready() {
                None => Answer::text(Status::Ok, "ready"),
                Some(reason) => Answer::text(Status::Unavailable, &reason),
            },
            "/stats.json" => {
                let stuck = overview.stuck();
                let peers_of = stuck.iter().map(|stuck| stuck.connection).collect();
                return self.ask(reply, asked, (0, peers_of), move |overview, findings| {
                    json::stats(overview, stuck, findings.peers)
                });
            }
            "/connections.json" => match top(asked.query) {
                Some(top) => {
                    return self.ask(reply, asked, (top, Vec::new()), |overview, findings| {
                        json::connections(overview, findings.most)
                    });
                }
                None => Answer::text(Status::BadRequest, &format!("top must be 1 to {MAX_TOP}")),
            },
            _ => Answer::refusal(Status::NotFound),
        };
        reply.push(&answer.bytes(asked.head_only, asked.close));
        if asked.close {
            reply.close();
        }
    }

    /// Answers once the reactor has found out about connections.
    fn ask(
        &self,
        reply: &mut Reply<'_>,
        asked: &Asked<'_>,
        (top, peers_of): (usize, Vec<crate::slots::ConnId>),
        body: impl FnOnce(&Overview, Findings) -> Vec<u8> + Send + 'static,
    ) {
        let (head_only, close) = (asked.head_only, asked.close);
        let (mut later, overview) = (reply.defer(), Arc::clone(&self.overview));
        let answer = Box::new(move |findings: Findings| {
            let body = body(&overview, findings);
            let answer = Answer { status: Status::Ok, content_type: json::CONTENT_TYPE, body };
            later.push(&answer.bytes(head_only, close));
            if close {
                later.close();
            }
            later.send();
        });
        self.overview.hub.post(Mail::Survey(Box::new(Survey { top, peers_of, answer })));
    }
}

/// How many rows a query asks for. `None`: what it says is no such number.
fn top(query: &str) -> Option<usize> {
    match query.split('&').find_map(|part| part.strip_prefix("top=")) {
        None => Some(DEFAULT_TOP),
        Some(top) => top.parse().ok().filter(|top| (1..=MAX_TOP).contains(top)),
    }
}

impl Handler for Admin {
    fn handle(&self, request: &Request<'_>, reply: &mut Reply<'_>) {
        match http::read(request.frame(), self.by_any_name) {
            Ok(asked) => self.answer(&asked, reply),
            Err(status) => {
                reply.push(&Answer::refusal(status).bytes(false, true));
                reply.close();
            }
        }
    }

    fn framing(&self) -> Option<&dyn Framing> {
        Some(&Heads)
    }

    fn classify(&self, _: &[u8]) -> Kind {
        Kind::Inline
    }

    fn last_line(&self, farewell: &Farewell) -> Option<Vec<u8>> {
        let status = match farewell {
            Farewell::LineTooLong { .. } => Status::TooLong,
            Farewell::LineTimeout { .. } => Status::Timeout,
            Farewell::Full { .. } => Status::Unavailable,
            _ => Status::Failed,
        };
        Some(Answer::refusal(status).bytes(false, true))
    }

    fn name(&self) -> &str {
        "admin"
    }
}
