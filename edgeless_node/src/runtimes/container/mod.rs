//! Functions in containers.

#[allow(dead_code, reason = "the runtime that uses it is not here yet")]
mod cgroup;
#[allow(dead_code, reason = "the runtime that uses it is not here yet")]
mod firewall;
#[cfg(test)]
mod live;
#[allow(dead_code, reason = "the runtime that uses it is not here yet")]
mod shaping;
