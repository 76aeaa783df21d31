//! Who decides how many workers there are: the server, or another system whose rule is restated here to compare with.

use std::str::FromStr;

use crate::controller::Policy;

/// A rule that sizes a pool. All get the same limits; what a rule has no use for it ignores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Rule {
    /// The server's own: [`crate::controller::decide`].
    Tidemill,
    /// `java.util.concurrent.ThreadPoolExecutor` with a queue without bound, as its class documentation states the rule:
    /// below the core size (here `min`) each request gets a thread of its own; from there on requests are queued, and only
    /// where the queue refuses one does the pool grow towards its maximum. This queue never refuses. Core threads stay.
    Jdk,
    /// The pool that tokio runs blocking closures on (`tokio/src/runtime/blocking/pool.rs`): a request that finds no idle
    /// thread gets a new one, up to `max`; a thread that was idle for the keep-alive ends. Idle threads are waked in the
    /// order in which they went idle. No minimum.
    Tokio,
    /// The starvation rule of .NET's pool (`PortableThreadPool.GateThread.cs`), without its hill climbing: below `min` a
    /// request that finds no idle thread gets a new one; above, a gate looks every 500 ms and adds one thread if requests
    /// wait and none was taken for 500 ms (where 80 % of the CPUs are in use: for one second times the threads). The most
    /// recently idle thread is waked first; one that was idle for the keep-alive ends.
    DotNet,
    /// The dynamic process manager of php-fpm (`sapi/fpm/fpm/fpm_process_ctl.c`): it looks once a second. With fewer idle ones than
    /// `pm.min_spare_servers` (here `min`) it starts what is missing, 1 at most, then 2, 4, up to 32 in looks that follow each other;
    /// with more than `pm.max_spare_servers` (here `min` and the tolerance) it ends one. It begins in the middle of the two.
    #[cfg_attr(feature = "serde", serde(rename = "php-fpm"))]
    PhpFpm,
    /// The helpers of Squid (`src/helper.cc`, `src/helper/ChildConfig.cc`) with `startup=` as `min` and the default `idle=1`: a request
    /// that finds no free helper starts one. None ends.
    Squid,
    /// The dynamic allocator of RoadRunner's pool (`pool/static_pool/dyn_allocator.go`) with its default `allocate_timeout` of 60 s and
    /// `spawn_rate` of 5: workers are added once a request has waited in vain for all of that, one batch a second; a batch of
    /// idle ones leaves at each end of the keep-alive (its `idle_timeout`), counted from when the first were added, in which no request
    /// wanted more. That request waits once more as long; what it fails with then is not shown: it waits on.
    RoadRunner,
    /// The assignment that tidemill began as: a pool of `clients` threads, resized only when clients and threads differ
    /// by more than the tolerance.
    Assignment,
}

/// Which idle worker takes the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The most recently idle worker takes the next request.
    LastIdleFirst,
    /// The one that has been idle longest.
    FirstIdleFirst,
}

impl Rule {
    /// All of them, the server's own first.
    pub const ALL: [Rule; 8] = [
        Rule::Tidemill,
        Rule::Jdk,
        Rule::Tokio,
        Rule::DotNet,
        Rule::PhpFpm,
        Rule::Squid,
        Rule::RoadRunner,
        Rule::Assignment,
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Tidemill => "tidemill",
            Rule::Jdk => "jdk",
            Rule::Tokio => "tokio",
            Rule::DotNet => "dotnet",
            Rule::PhpFpm => "php-fpm",
            Rule::Squid => "squid",
            Rule::RoadRunner => "roadrunner",
            Rule::Assignment => "assignment",
        }
    }

    /// Workers that there are before any request.
    pub(super) fn at_start(self, policy: &Policy) -> usize {
        match self {
            Rule::Tidemill | Rule::Assignment | Rule::Squid | Rule::RoadRunner => policy.min(),
            Rule::PhpFpm => policy.min().saturating_add(policy.tolerance() / 2).min(policy.max()),
            Rule::Jdk | Rule::Tokio | Rule::DotNet => 0,
        }
    }

    pub(super) fn order(self) -> Order {
        match self {
            Rule::Tidemill | Rule::Assignment | Rule::DotNet | Rule::Squid => Order::LastIdleFirst,
            Rule::Jdk | Rule::Tokio | Rule::PhpFpm | Rule::RoadRunner => Order::FirstIdleFirst,
        }
    }

    /// Above how many workers one ends that was idle for the keep-alive. `None`: idleness alone ends none.
    pub(super) fn idle_ends_above(self) -> Option<usize> {
        match self {
            Rule::Tokio | Rule::DotNet => Some(0),
            _ => None,
        }
    }

    /// The workers there should be after a request has come. Now `jobs` wait or run.
    pub(super) fn on_request(self, policy: &Policy, workers: usize, jobs: usize, found_idle: bool) -> usize {
        match self {
            Rule::Jdk if workers < policy.min() => workers + 1,
            Rule::DotNet if workers < policy.min() && !found_idle => workers + 1,
            Rule::Tokio | Rule::Squid if workers < policy.max() && !found_idle => workers + 1,
            Rule::Assignment if jobs.abs_diff(workers) > policy.tolerance() => {
                jobs.clamp(policy.min(), policy.max())
            }
            _ => workers,
        }
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Rule::ALL.map(Rule::name).join(", ");
        Rule::ALL
            .into_iter()
            .find(|rule| rule.name() == text)
            .ok_or_else(|| format!("the rules are {}", names()))
    }
}
