pub(crate) mod wrong_server;
