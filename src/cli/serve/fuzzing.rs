//! What the fuzz target of the options calls, and the test that runs its corpus. Not in any other build.

use std::net::IpAddr;
use std::time::Duration;

use tidemill::{Address, StopFrom};

use super::arguments::{proxy_from, stop_from, timeout};
use crate::cli::size;

/// What an option accepts says the same when it is written out and read again; nothing panics.
pub(crate) fn options(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(bytes) = size::parse(text) {
        assert_eq!(size::parse(&bytes.to_string()), Ok(bytes), "{text}");
    }
    if let Some(duration) = limit(text) {
        let written = humantime::format_duration(duration).to_string();
        assert_eq!(limit(&written), Some(duration), "{text}: {written}");
    }
    if let Ok(proxies) = proxy_from(text) {
        let written: Vec<String> = proxies.networks.iter().map(ToString::to_string).collect();
        let unix = proxies.unix.then(|| "unix".to_owned());
        let written: Vec<String> = written.into_iter().chain(unix).collect();
        let expected = if written.is_empty() { "none".to_owned() } else { written.join(",") };
        assert_eq!(proxy_from(&expected).as_ref(), Ok(&proxies), "{text}");
    }
    if let Ok(peers) = stop_from(text) {
        assert!(!text.is_empty());
        let addresses = ["127.0.0.1", "10.1.2.3", "::1", "::ffff:10.1.2.3", "2001:db8::1", "0.0.0.0"];
        let allowed = |peers: &StopFrom| {
            addresses
                .map(|ip| ip.parse::<IpAddr>().is_ok_and(|ip| peers.allows(&Address::Tcp((ip, 1).into()))))
        };
        if let StopFrom::Networks(networks) = &peers {
            let written: Vec<String> = networks.iter().map(ToString::to_string).collect();
            let again = stop_from(&written.join(","));
            assert_eq!(again.as_ref().map(allowed), Ok(allowed(&peers)), "{text}");
        }
    }
}

fn limit(text: &str) -> Option<Duration> {
    timeout(text).ok().and_then(|limit| limit.0)
}

/// Runs what the fuzzer kept for `target`.
#[cfg(test)]
pub(crate) fn run_corpus(target: &str, play: impl Fn(&[u8])) {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let files = std::fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
    let mut count = 0;
    for file in files {
        play(&std::fs::read(file.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0, "there is no corpus for {target}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn options_hold_for_the_corpus() {
        super::run_corpus("options", super::options);
    }
}
