//! The domain as one node of another domain.
//!
//! ```text
//!  parent -- start, patch, … --> agent_url: agent -> ids of the domain -> engine -> nodes
//!         <-- registration ------ announcer <- what the nodes have together (aggregate)
//!  nodes of the parent <-- events --> invocation_url: forwarder <--> nodes of the domain
//! ```
//! - `agent`: what the parent started here, and the commands of the parent about it.
//! - `aggregate`: what a domain is as a node, pure; `announcer`: keeps it known to the parent.
//!
//! A domain with a parent works for it alone. While the parent is away everything goes on as it is.

mod agent;
mod aggregate;
mod announcer;

pub(crate) use agent::Agent;
pub(crate) use aggregate::node_of;
pub(crate) use announcer::{Announcer, Farewell, Parent};
