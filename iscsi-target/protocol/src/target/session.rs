//! What the connections of a session share: command numbers, their window, and what was agreed on (4.2.2.1).

use crate::negotiation::Parameters;
use crate::serial;

/// Most commands of a session at a time.
pub const COMMANDS_MAX: u32 = 512;

/// What a request's CmdSN says about when it is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Now.
    Now,
    /// Once those before it have come on other connections.
    Later,
    /// Never: outside of the window, or there already.
    Never,
}

/// One session. All of its connections are driven in one place.
#[derive(Debug)]
pub struct Session {
    parameters: Parameters,
    discovery: bool,
    /// Next expected command (ExpCmdSN).
    expected: u32,
    /// Commands that may be in flight at a time.
    commands: u32,
    /// Of those, taken and not answered. At most `commands`.
    in_flight: u32,
}

impl Session {
    pub(super) fn new(parameters: Parameters, discovery: bool, first: u32, commands: u32) -> Self {
        assert!((1..=COMMANDS_MAX).contains(&commands), "{commands} commands");
        Self { parameters, discovery, expected: first, commands, in_flight: 0 }
    }

    /// What was agreed on for the whole session; what belongs to a connection is that of the first one.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Whether this is a discovery session: it has no tasks.
    pub fn is_discovery(&self) -> bool {
        self.discovery
    }

    /// Next expected command (ExpCmdSN). When it moves, connections that wait for their turn may go on.
    pub fn expected(&self) -> u32 {
        self.expected
    }

    /// Last command that the window takes (MaxCmdSN). It never goes back: a command that comes moves ExpCmdSN up as it takes
    /// a place away.
    pub fn last(&self) -> u32 {
        self.expected.wrapping_add(self.commands - self.in_flight).wrapping_sub(1)
    }

    /// Commands that may be in flight at a time.
    pub fn commands(&self) -> u32 {
        self.commands
    }

    /// Commands that are taken and not answered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(super) fn turn(&self, cmd_sn: u32) -> Turn {
        if cmd_sn == self.expected && self.in_flight < self.commands {
            Turn::Now
        } else if serial::before(self.expected, cmd_sn) && !serial::before(self.last(), cmd_sn) {
            Turn::Later
        } else {
            Turn::Never
        }
    }

    /// Takes the command whose turn it is.
    pub(super) fn take(&mut self) {
        self.expected = self.expected.wrapping_add(1);
        self.in_flight += 1;
    }

    /// A command that was taken is answered, or never will be.
    pub(super) fn release(&mut self) {
        self.in_flight -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_closes_and_opens_and_never_goes_back() {
        // Over the end of the numbers.
        let mut session = Session::new(Parameters::default(), false, u32::MAX, 2);
        assert_eq!((session.expected(), session.last()), (u32::MAX, 0));
        session.take();
        assert_eq!((session.expected(), session.last()), (0, 0));
        session.take();
        assert_eq!((session.expected(), session.last()), (1, 0), "closed");
        assert_eq!(session.turn(1), Turn::Never);
        session.release();
        assert_eq!((session.expected(), session.last()), (1, 1));
        assert_eq!(session.turn(1), Turn::Now);
    }

    #[test]
    fn only_numbers_within_the_window_have_a_turn() {
        let session = Session::new(Parameters::default(), false, 10, 4);
        let turns = [9, 10, 11, 13, 14, 10 + (1 << 31)].map(|number| session.turn(number));
        assert_eq!(turns, [Turn::Never, Turn::Now, Turn::Later, Turn::Later, Turn::Never, Turn::Never]);
    }
}
