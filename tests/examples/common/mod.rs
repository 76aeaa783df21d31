//! What every example does besides its service: `NAME [ADDR:PORT]` listens there, 127.0.0.1:8000 unless said otherwise, says where
//! once clients can connect, and ends gracefully on SIGTERM or CTRL-C.

use std::env;
use std::error::Error;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tidemill::{Address, Config, Server, Service};

/// Serves until a signal comes. `change`: settings other than the defaults.
#[expect(clippy::print_stdout, reason = "it is a program")]
pub(crate) fn run(service: impl Service, change: impl FnOnce(&mut Config)) -> Result<(), Box<dyn Error>> {
    let address: Address = env::args().nth(1).as_deref().unwrap_or("127.0.0.1:8000").parse()?;
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let mut config = Config::default();
    config.listen.push(address);
    change(&mut config);
    let server = Server::builder(service).config(config).start()?;
    println!("listening on {}", server.local_addr());
    let handle = server.handle();
    thread::spawn(move || signals.forever().for_each(|_| handle.stop()));
    let outcome = server.wait()?;
    if outcome.is_clean() { Ok(()) } else { Err(format!("{outcome:?}").into()) }
}
