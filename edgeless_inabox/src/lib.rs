//! The whole platform in one process, and the cluster fixture that tests use
