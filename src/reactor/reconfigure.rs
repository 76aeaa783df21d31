//! Other settings, while the server runs.
//!
//! They come checked and whole (`ServerHandle::reconfigure`), and are obeyed between two turns. Most are read where they are needed.
//! What a connection keeps of them is told it anew here. Then each that is not at rest is looked at as if an event had come for it,
//! which resumes what may go on and ends what is over, and the deadlines of all are armed. So no setting needs a case of its own
//! for connections that are there already.

use std::mem;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use socket2::SockRef;

use super::Reactor;
use super::peers::Peers;
use super::socket::Stream;
use super::table::Entry;
use crate::config::Settings;
use crate::connection::Role;
use crate::sync::lock_std;

/// Settings on their way to the reactor. Of those that it has not taken the last ones count, as they are whole.
#[derive(Debug, Default)]
pub(crate) struct NewSettings {
    /// Some are there: spares each turn the lock. Set by who gives, cleared by the reactor. Relaxed: whoever gives wakes the reactor
    /// then, which looks before it does anything else.
    are_there: AtomicBool,
    settings: Mutex<Option<Settings>>,
}

impl NewSettings {
    /// Followed by a wake.
    pub(crate) fn give(&self, settings: Settings) {
        *lock_std(&self.settings) = Some(settings);
        self.are_there.store(true, Relaxed);
    }

    #[inline]
    pub(super) fn take(&self) -> Option<Settings> {
        if !self.are_there.load(Relaxed) {
            return None;
        }
        self.are_there.store(false, Relaxed);
        lock_std(&self.settings).take()
    }
}

impl Reactor {
    /// Obeys `settings` from now on.
    pub(super) fn obey(&mut self, settings: Settings) {
        let before = mem::replace(&mut self.settings, settings);
        let now = self.now();
        self.free.slots().limit_posted(self.settings.posted_bytes());
        self.peers = self
            .settings
            .services
            .iter()
            .map(|service| Peers::new(service.max_connections_per_peer))
            .collect();
        let is_other = self.settings.send_buffer_bytes != before.send_buffer_bytes;
        let send_buffer = self.settings.send_buffer_bytes.filter(|_| is_other);
        if is_other {
            self.listeners.set_options(&self.settings);
        }
        for id in self.table.ids() {
            let Some(Entry { stream, connection, .. }) = self.table.get(id) else { continue };
            let service = connection.service() as usize;
            let (old, new) = (&before.services[service].timeouts, &self.settings.services[service]);
            let peer = connection.peer();
            // Of others it is not known yet, or of no interest any more, whose they are.
            if matches!(connection.role, Role::Requests | Role::Joined) {
                connection.may_stop = new.stop_from.allows(&peer);
                self.peers[service].count(&peer);
            }
            // Was not kept up to date: it counts from here.
            if old.idle.is_none() {
                connection.set_active(now);
            }
            // The same: what stands there is of an earlier job. Who has one now is timed from the next on.
            if old.request.is_none() {
                self.free.slots().set_taken(id, 0);
            }
            if let (Some(bytes), Stream::Tcp(stream)) = (send_buffer, stream) {
                // Linux refuses no size. Where it is refused, the connection keeps what it has.
                drop(SockRef::from(&*stream).set_send_buffer_size(bytes));
            }
            connection.keep_watermarks(self.settings.watermarks(connection.service()));
            // Not all: whoever is looked at in vain has not been active.
            match connection.wants_service() {
                true => self.list(id),
                false => self.arm(id),
            }
        }
        // Last: workers begin to time what they take.
        for (service, settings) in self.services.iter().zip(&self.settings.services) {
            service.obey(settings);
        }
    }
}
