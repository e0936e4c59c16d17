//! What becomes of an event, and who is told.

use edgeless_api::peer;

use crate::metrics::Dropped;

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// A handler took it and came to its end.
    Handled,
    /// Its time was up before a handler took it.
    Expired,
    /// No handler took it.
    Dropped(Dropped),
    /// It may have run: whoever had it was lost.
    Unknown,
    /// It was given to an EDGELESS 1.x node, and nobody will hear more.
    HandedOver,
}

/// The right of whoever sends an event to learn its fate.
pub trait Ticket: Send + 'static {
    /// Tells the fate. Must not block.
    fn settle(self, fate: Fate);
}

impl From<peer::Fate> for Fate {
    fn from(fate: peer::Fate) -> Self {
        match fate {
            peer::Fate::Handled => Self::Handled,
            peer::Fate::Expired => Self::Expired,
            peer::Fate::UnknownTarget => Self::Dropped(Dropped::UnknownTarget),
            peer::Fate::NoInstance => Self::Dropped(Dropped::NoInstance),
            peer::Fate::MailboxFull => Self::Dropped(Dropped::MailboxFull),
            peer::Fate::TooLarge => Self::Dropped(Dropped::TooLarge),
            peer::Fate::TargetFailed => Self::Dropped(Dropped::TargetFailed),
            peer::Fate::Stopping => Self::Dropped(Dropped::Stopping),
            peer::Fate::Unknown => Self::Unknown,
            peer::Fate::HandedOver => Self::HandedOver,
        }
    }
}

impl From<Fate> for peer::Fate {
    /// Causes that only a sender can see become the nearest that it understands.
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Handled => Self::Handled,
            Fate::Expired | Fate::Dropped(Dropped::Expired) => Self::Expired,
            Fate::Dropped(Dropped::UnknownTarget) => Self::UnknownTarget,
            Fate::Dropped(Dropped::NoInstance | Dropped::UnknownPeer | Dropped::PeerLost | Dropped::Unmapped) => {
                Self::NoInstance
            }
            Fate::Dropped(
                Dropped::MailboxFull
                | Dropped::SelfFull
                | Dropped::HeldFull
                | Dropped::DelayedFull
                | Dropped::OutboxFull
                | Dropped::NotKept,
            ) => Self::MailboxFull,
            Fate::Dropped(Dropped::TooLarge) => Self::TooLarge,
            Fate::Dropped(Dropped::TargetFailed | Dropped::DeadLetter) => Self::TargetFailed,
            Fate::Dropped(Dropped::Stopping | Dropped::SenderGone) => Self::Stopping,
            Fate::Unknown => Self::Unknown,
            Fate::HandedOver => Self::HandedOver,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_receiver_says_its_sender_understands() {
        let all = [
            Fate::Handled,
            Fate::Expired,
            Fate::Dropped(Dropped::UnknownTarget),
            Fate::Dropped(Dropped::NoInstance),
            Fate::Dropped(Dropped::MailboxFull),
            Fate::Dropped(Dropped::TooLarge),
            Fate::Dropped(Dropped::TargetFailed),
            Fate::Dropped(Dropped::Stopping),
            Fate::Unknown,
            Fate::HandedOver,
        ];
        for fate in all {
            assert_eq!(Fate::from(peer::Fate::from(fate)), fate);
        }
    }
}
