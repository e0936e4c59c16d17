//! One line on stderr that says what is being done, for who waits at a terminal.

use std::io::{IsTerminal, Write};

/// The line; it is gone when this is dropped.
pub(crate) struct Progress {
    is_shown: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { is_shown: std::io::stderr().is_terminal() }
    }

    /// Replaces the line.
    pub(crate) fn say(&self, what: &str) {
        if self.is_shown {
            let mut stderr = std::io::stderr().lock();
            // Who has closed the terminal misses nothing.
            write!(stderr, "\r\x1b[2K{what}").and_then(|()| stderr.flush()).ok();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.say("");
    }
}
