//! What stands in front of the server: how it leaves a load balancer without anybody noticing, and how it shares a port.

mod agent;
mod delay;
mod haproxy;
mod proxy;
mod tls;
