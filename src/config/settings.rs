//! What was set, checked: a [`Config`] and the [`ServiceConfig`]s turned once into [`Settings`], which every thread may read.
//!
//! Only [`Config::check_with`] makes one, so nobody behind it meets a value out of range.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{
    Config, LooksOn, MAX_DURATION, MAX_LINE_BYTES, MAX_THREAD_STACK_BYTES, MAX_WORKERS,
    MIN_THREAD_STACK_BYTES, PoolLimits, ProxyFrom, ServiceConfig, StopFrom,
};
use crate::address::Address;
use crate::clock::{Nanos, nanos};
use crate::controller::Policy;
use crate::error::Error;

/// Most connections that can be asked for: slots are counted in 32 bits (`slots::ConnId`).
const MAX_CONNECTIONS: usize = 1 << 30;
/// Where a server listens that was not told where.
const DEFAULT_PORT: u16 = 8000;

/// Which of the server's services.
pub(crate) type ServiceId = u16;

/// A [`Config`] that was checked. Only `Config::check_with` makes one.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) listen: Vec<Address>,
    pub(crate) limits: PoolLimits,
    pub(crate) policy: Policy,
    pub(crate) max_pending: usize,
    pub(crate) max_memory_bytes: usize,
    pub(crate) send_buffer_bytes: Option<usize>,
    pub(crate) unix_mode: u32,
    pub(crate) reuse_port: bool,
    pub(crate) thread_stack_bytes: usize,
    pub(crate) drain_timeout: Duration,
    /// Of each service; those that look on stand behind all others.
    pub(crate) services: Vec<ServiceSettings>,
    /// Whose the listeners are: for each of `listen` the index of its service.
    pub(crate) listen_services: Vec<ServiceId>,
}

/// A [`ServiceConfig`] that was checked.
#[derive(Clone, Debug)]
pub(crate) struct ServiceSettings {
    pub(crate) max_connections: usize,
    pub(crate) max_connections_per_peer: Option<usize>,
    pub(crate) max_line_bytes: usize,
    pub(crate) high_watermark_bytes: usize,
    pub(crate) timeouts: Timeouts,
    pub(crate) queue_timeout: Option<Nanos>,
    /// See `slow`.
    pub(crate) slow: Option<Nanos>,
    pub(crate) stop_from: StopFrom,
    pub(crate) proxy_from: ProxyFrom,
    /// It looks on: its connections are no clients. They are in no statistics and under no common limit, and a graceful stop
    /// leaves them alone.
    pub(crate) looks_on: Option<LooksOn>,
}

/// How long peers may take, in nanoseconds; `None`: for ever.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timeouts {
    /// For the rest of a line, from its first byte on, while it is read.
    pub(crate) line: Option<Nanos>,
    /// With nothing outstanding.
    pub(crate) idle: Option<Nanos>,
    /// To take any of the replies that wait.
    pub(crate) write: Option<Nanos>,
    /// For a handler, until its client is not kept waiting any longer.
    pub(crate) request: Option<Nanos>,
}

impl ServiceSettings {
    /// Lines of up to so many bytes, and nothing that is limited.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_lines(max_line_bytes: usize, stop_from: StopFrom) -> ServiceSettings {
        ServiceSettings {
            max_connections: usize::MAX,
            max_connections_per_peer: None,
            max_line_bytes,
            high_watermark_bytes: usize::MAX,
            timeouts: Timeouts::default(),
            queue_timeout: None,
            slow: None,
            stop_from,
            proxy_from: ProxyFrom::default(),
            looks_on: None,
        }
    }
}

impl Settings {
    /// Unread replies at which a connection of a service is paused, and at which it is resumed.
    pub(crate) fn watermarks(&self, service: ServiceId) -> (usize, usize) {
        let high = self.services[service as usize].high_watermark_bytes;
        (high, high / 4)
    }

    /// Of each service, how many pushed bytes may be on their way to a connection.
    pub(crate) fn posted_bytes(&self) -> impl Iterator<Item = usize> {
        self.services.iter().map(|service| service.high_watermark_bytes)
    }
}

impl ServiceConfig {
    /// Checks every value but the addresses.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first one out of range.
    fn check(&self) -> Result<ServiceSettings, Error> {
        within("max_connections", self.max_connections, 1, MAX_CONNECTIONS)?;
        within("max_line_bytes", self.max_line_bytes, 1, MAX_LINE_BYTES)?;
        within("high_watermark_bytes", self.high_watermark_bytes, 1, 1 << 30)?;
        if let Some(limit) = self.max_connections_per_peer {
            within("max_connections_per_peer", limit, 1, 1 << 30)?;
        }
        let timeouts = Timeouts {
            line: timeout("line_timeout", self.line_timeout)?,
            idle: timeout("idle_timeout", self.idle_timeout)?,
            write: timeout("write_timeout", self.write_timeout)?,
            request: timeout("request_timeout", self.request_timeout)?,
        };
        Ok(ServiceSettings {
            max_connections: self.max_connections,
            max_connections_per_peer: self.max_connections_per_peer,
            max_line_bytes: self.max_line_bytes,
            high_watermark_bytes: self.high_watermark_bytes,
            queue_timeout: timeout("queue_timeout", self.queue_timeout)?,
            slow: timeout("slow_log", self.slow_log)?,
            timeouts,
            stop_from: self.stop_from.clone(),
            proxy_from: self.proxy_from.clone(),
            looks_on: None,
        })
    }
}

impl PoolLimits {
    /// The controller's policy for these limits.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first limit out of range.
    pub(crate) fn check(&self) -> Result<Policy, Error> {
        within("min_threads", self.min_threads, 1, MAX_WORKERS)?;
        within("max_threads", self.max_threads, 1, MAX_WORKERS)?;
        if self.min_threads > self.max_threads {
            return Err(setting(
                "min_threads",
                self.min_threads,
                format!("at most max_threads, which is {}", self.max_threads),
            ));
        }
        within("tolerance", self.tolerance, 0, MAX_WORKERS)?;
        lasting("keep_alive", self.keep_alive, Duration::from_millis(1))?;
        Ok(Policy::new(self.min_threads, self.max_threads, self.tolerance, self.keep_alive))
    }
}

impl Config {
    /// Checks every value, for a server of one service.
    ///
    /// # Errors
    /// As [`check_with`](Self::check_with).
    #[cfg(test)]
    pub(crate) fn check(self) -> Result<Settings, Error> {
        self.check_with(Vec::new(), true)
    }

    /// Checks every value. `others`: what is set for the services besides the first. `by_default`: without an address the default
    /// one is meant.
    ///
    /// # Errors
    /// [`Error::Setting`] for the first one out of range.
    pub(crate) fn check_with(
        mut self,
        others: Vec<ServiceConfig>,
        by_default: bool,
    ) -> Result<Settings, Error> {
        let limits = PoolLimits {
            min_threads: self.min_threads,
            max_threads: self.max_threads,
            tolerance: self.tolerance,
            keep_alive: self.keep_alive,
        };
        let policy = limits.check()?;
        within("max_pending", self.max_pending, 1, 1 << 30)?;
        within("max_memory_bytes", self.max_memory_bytes, 1 << 20, usize::MAX)?;
        if let Some(bytes) = self.send_buffer_bytes {
            within("send_buffer_bytes", bytes, 4 << 10, 1 << 30)?;
        }
        if self.unix_mode > 0o777 {
            return Err(setting("unix_mode", format!("{:o}", self.unix_mode), "0 to 777".to_owned()));
        }
        within(
            "thread_stack_bytes",
            self.thread_stack_bytes,
            MIN_THREAD_STACK_BYTES,
            MAX_THREAD_STACK_BYTES,
        )?;
        lasting("drain_timeout", self.drain_timeout, Duration::ZERO)?;
        let mut first = self.first_service();
        if first.listen.is_empty() && others.is_empty() && by_default {
            first.listen = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)).into()];
        }
        let (mut services, mut listen, mut listen_services) = (Vec::new(), Vec::new(), Vec::new());
        for (number, service) in std::iter::once(first).chain(others).enumerate() {
            let number = nth_service(number)?;
            services.push(service.check()?);
            listen_services.extend(service.listen.iter().map(|_| number));
            listen.extend(service.listen);
        }
        #[cfg(feature = "admin")]
        {
            if self.admin.is_some() {
                within("admin_connections", self.admin_connections, 1, MAX_CONNECTIONS)?;
            }
            for (kind, address) in [(LooksOn::Admin, self.admin), (LooksOn::Agent, self.agent)] {
                let Some(address) = address else { continue };
                let service = kind.service_config(self.admin_connections).check()?;
                listen_services.push(nth_service(services.len())?);
                services.push(ServiceSettings { looks_on: Some(kind), ..service });
                listen.push(address);
            }
        }
        Ok(Settings {
            listen,
            limits,
            policy,
            max_pending: self.max_pending,
            max_memory_bytes: self.max_memory_bytes,
            send_buffer_bytes: self.send_buffer_bytes,
            unix_mode: self.unix_mode,
            reuse_port: self.reuse_port,
            thread_stack_bytes: self.thread_stack_bytes,
            drain_timeout: self.drain_timeout,
            services,
            listen_services,
        })
    }
}

/// The service that has so many before it.
fn nth_service(number: usize) -> Result<ServiceId, Error> {
    ServiceId::try_from(number)
        .map_err(|_| setting("services", number + 1, format!("at most {}", ServiceId::MAX)))
}

fn within(name: &'static str, value: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(setting(name, value, format!("{least} to {most}")))
}

fn lasting(name: &'static str, value: Duration, least: Duration) -> Result<(), Error> {
    if (least..=MAX_DURATION).contains(&value) {
        return Ok(());
    }
    Err(setting(name, format!("{value:?}"), format!("{least:?} to a year")))
}

fn timeout(name: &'static str, timeout: Option<Duration>) -> Result<Option<Nanos>, Error> {
    timeout
        .map(|timeout| lasting(name, timeout, Duration::from_millis(1)).map(|()| nanos(timeout)))
        .transpose()
}

fn setting(name: &'static str, value: impl ToString, must: String) -> Error {
    Error::Setting { name, value: value.to_string(), must }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range() {
        Config::default().check().unwrap();
    }

    #[test]
    fn the_setting_out_of_range_is_named_with_its_value() {
        let cases: [(Config, &str); 7] = [
            (Config { min_threads: 0, ..Config::default() }, "min_threads is 0, but must be 1 to 10000"),
            (Config { max_threads: 0, ..Config::default() }, "max_threads is 0, but must be 1 to 10000"),
            (
                Config { min_threads: 9, max_threads: 8, ..Config::default() },
                "min_threads is 9, but must be at most max_threads, which is 8",
            ),
            (
                Config { max_line_bytes: 0, ..Config::default() },
                "max_line_bytes is 0, but must be 1 to 67108864",
            ),
            (
                Config { thread_stack_bytes: 65_535, ..Config::default() },
                "thread_stack_bytes is 65535, but must be 65536 to 1073741824",
            ),
            (Config { max_pending: 0, ..Config::default() }, "max_pending is 0, but must be 1 to 1073741824"),
            (
                Config { keep_alive: Duration::ZERO, ..Config::default() },
                "keep_alive is 0ns, but must be 1ms to a year",
            ),
        ];
        for (config, expected) in cases {
            assert_eq!(config.check().unwrap_err().to_string(), expected);
        }
    }
}
