//! What a signal does.

use signal_hook::consts::{SIGINT, SIGUSR1};
use signal_hook::iterator::Signals;
use tidemill::ServerHandle;

use super::log::STATISTICS;
use super::statistics::json;

/// The signal thread: until the signals are closed.
pub(super) fn watch(mut signals: Signals, handle: &ServerHandle) {
    let mut stops = 0;
    for signal in signals.forever() {
        if signal == SIGUSR1 {
            let stats = json(handle, &handle.decisions());
            tracing::info!(target: STATISTICS, %stats, "statistics");
            continue;
        }
        stops += 1;
        let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
        if stops == 1 {
            tracing::info!(signal = name, "stopping; once more stops at once");
            handle.stop();
        } else {
            tracing::warn!(signal = name, "stopping at once");
            handle.stop_now();
        }
    }
}
