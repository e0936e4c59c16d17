//! How a command fails: what it says, and the exit code that scripts see.

use std::io;

use edgeless_api::{Code, Error};

/// The exit code of a process that Ctrl-C ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was typed, or what a file says, is wrong: one line for each mistake.
    Input(Vec<String>),
    /// It cannot be done.
    Refused(String),
    /// A daemon refused it or cannot be reached.
    Daemon(Error),
    /// Nobody reads what it writes.
    Output(io::Error),
    /// All is said; this is the exit code.
    Said(u8),
}

impl Failure {
    /// A mistake in what was typed or in a file.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::Input(vec![message.into()])
    }

    /// What to say, one message each.
    pub(crate) fn lines(&self) -> Vec<String> {
        match self {
            Self::Input(lines) => lines.clone(),
            Self::Refused(message) => vec![message.clone()],
            Self::Daemon(error) => vec![error.message.clone()],
            Self::Output(error) if is_closed(error) => Vec::new(),
            Self::Output(error) => vec![format!("cannot write the output: {}", reason(error))],
            Self::Said(_) => Vec::new(),
        }
    }

    /// What the process ends with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Refused(_) => 1,
            Self::Daemon(error) => error.code.exit_code(),
            // Whoever closed the pipe has read all that was wanted.
            Self::Output(error) if is_closed(error) => 0,
            Self::Output(_) => 1,
            Self::Said(code) => *code,
        }
    }

    /// Says what to look at when the daemon cannot be reached.
    pub(crate) fn with_hint(self, hint: &str) -> Self {
        match self {
            // A daemon that can be reached may be unable to serve; its own words are enough.
            Self::Daemon(error) if error.code == Code::Unavailable && error.message.starts_with("cannot reach ") => {
                Self::Daemon(Error { message: format!("{error}; {hint}"), ..error })
            }
            other => other,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Daemon(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// The reason of an error of the operating system, in the wording of our own messages.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let reason = text.rsplit_once(" (os error ").map_or(text.as_str(), |(reason, _)| reason);
    let mut letters = reason.chars();
    letters.next().into_iter().flat_map(char::to_lowercase).chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_the_operating_system_are_made_ours() {
        assert_eq!(reason(&io::Error::from_raw_os_error(2)), "no such file or directory");
        let unreachable = Error::unavailable("cannot reach http://a:1: connection refused");
        let failure = Failure::from(unreachable).with_hint("is it running?");
        assert_eq!(failure.lines(), ["cannot reach http://a:1: connection refused; is it running?"]);
        assert_eq!(failure.exit_code(), 3);
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((failure.lines().len(), failure.exit_code()), (0, 0));
    }

    #[test]
    fn a_hint_is_for_the_unreachable_only() {
        let failure = Failure::from(Error::not_found("no such workflow")).with_hint("is it running?");
        assert_eq!(failure.lines(), ["no such workflow"]);
        assert_eq!(failure.exit_code(), 1);
    }
}
