//! The orchestrator: places the components of its domain on nodes
