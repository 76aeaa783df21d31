//! End-to-end tests: real sockets, real signals, the real binary.
//!
//! | module | what it holds |
//! |---|---|
//! | `protocol` | the HELO protocol byte for byte, however the bytes are cut |
//! | `pipelining` | many requests in one write: order, and fairness towards others |
//! | `many` | hundreds of connections at once; ten thousand idle ones; bursts of connects |
//! | `limits` | connections, lines, pending requests, file descriptors |
//! | `slow_reader` | a client that does not read costs the others nothing |
//! | `neighbours` | nobody takes more than its share of a turn |
//! | `memory` | what connections hold: bounded, known, given back |
//! | `sockets` | several addresses, Unix sockets, refusals to start |
//! | `given` | sockets that were given, or go from one server to the next: their doors stay open |
//! | `timeouts` | peers and handlers that take too long |
//! | `mixture` | many peers of every kind at once: every account balances |
//! | `closing` | how the server ends a connection: after all replies, without a reset |
//! | `stop` | signals and `KILL_SERVICE`: nothing that arrived is lost |
//! | `deploy` | what operators start from (`scripts/deploy`): the tools that it is for take it |
//! | `systemd` | sockets that are passed, and what a service manager is told |
//! | `upgrade` | SIGUSR2: another process takes over, and no client notices |
//! | `front` | behind a load balancer: PROXY protocol, HAProxy's agent-check, the delay before a stop, shared ports |
//! | `faults` | every way a peer or a system can fail, beside a polite client that does not notice |
//! | `chaos` | a hundred clients of twelve kinds, stalls, resizes, a stop: all accounts balance |
//! | `stops` | a hundred stops at random moments under load |
//! | `services` | state, framings, the event loop, later replies, push: what a service can do |
//! | `examples` | the examples as programs, driven by `redis-cli`, `redis-benchmark`, Python's `redis` and `postmap` |
//! | `exec` | programs as handlers, and `client --pipe` |
//! | `handlers` | the library: closures, panics, closing, stopping from inside |
//! | `pool` | growing, shrinking, limits changed while it runs |
//! | `reconfigure` | settings changed while it runs: connections that are there obey, nothing is lost |
//! | `stats` | the names, and that they add up at every moment |
//! | `cli` | options, usage errors, exit statuses, help |
//! | `extremes` | every option of every subcommand with values that nobody means: none panics or hangs |
//! | `config` | `--config`: layers, errors, `--check`, the example |
//! | `reload` | SIGHUP: what changes, what needs a restart, what is refused; under load |
//! | `manual` | manual pages and completions, as `man` and shells take them |
//! | `architecture` | every module of the crate has its place in the order, and uses only what stands to its left |
//! | `operating` | what the page for operators names is there |
//! | `scripts` | `start.sh`, `compile.sh`, `scripts/client.sh` |
//! | `logs` | a reader of logs or of statistics that stands still stops nothing, nor does one that is gone |
//! | `load_tool` | `tidemill load` against servers that are wrong in one way each |
//! | `load_protocols` | `tidemill load` against Redis, memcached and an SMTP server |
//! | `simulate_tool` | `tidemill simulate`: output, report, usage |
//! | `admin` | the admin address: what it says, whatever the server is doing, and that it disturbs nobody |
//! | `top_tool` | `tidemill top` in a pseudo terminal, and for scripts |
//! | `framing_props` | lines do not depend on how bytes were cut: properties |
//! | `controller_props` | the controller keeps its rules for any sequence of samples |
//! | `controller_sim` | the rows of the elasticity scorecard in simulated time |
//! | `regressions` | bugs that were, in words |
//! | `support` | the program as a child, raw sockets, waiting for a condition |

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod admin;
mod architecture;
mod chaos;
mod cli;
mod closing;
mod config;
mod controller_props;
mod controller_sim;
mod deploy;
mod examples;
mod exec;
mod extremes;
mod faults;
mod framing_props;
mod front;
mod given;
mod handlers;
mod limits;
mod load_protocols;
mod load_tool;
mod logs;
mod manual;
mod many;
mod memory;
mod mixture;
mod neighbours;
mod operating;
mod pipelining;
mod pool;
mod protocol;
mod reconfigure;
mod regressions;
mod reload;
mod scripts;
mod services;
mod simulate_tool;
mod slow_reader;
mod sockets;
mod stats;
mod stop;
mod stops;
mod support;
mod systemd;
mod timeouts;
mod top_tool;
mod upgrade;
