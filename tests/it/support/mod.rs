pub(crate) mod peer;
pub(crate) mod server;
pub(crate) mod wrong_server;
