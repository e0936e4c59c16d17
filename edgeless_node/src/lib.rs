//! The node: runs functions and resources and carries their events
