//! Servers to compare with.

pub(crate) mod channel;
pub(crate) mod floor;
pub(crate) mod tokio;
