//! The command line of the platform
