//! `target_session_attrs`: which of several servers is wanted (`fe-connect.c:PQconnectPoll`, `CONNECTION_CHECK_TARGET`).

/// What the server must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    /// A standby; when all hosts were tried in vain, any.
    PreferStandby,
}

pub(super) const WORDS: [(&str, Target); 6] = [
    ("any", Target::Any),
    ("read-write", Target::ReadWrite),
    ("read-only", Target::ReadOnly),
    ("primary", Target::Primary),
    ("standby", Target::Standby),
    ("prefer-standby", Target::PreferStandby),
];

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub standby: bool,
    /// `default_transaction_read_only`.
    pub read_only: bool,
}

impl Target {
    pub(super) fn word(self) -> &'static str {
        WORDS.iter().find(|(_, target)| *target == self).map_or("any", |(word, _)| word)
    }

    /// Why a server is not taken; `None` when it is.
    pub(super) fn refusal(self, server: Standing) -> Option<&'static str> {
        let cannot_write = server.standby || server.read_only;
        match self {
            Target::ReadWrite if server.standby => Some("the server is a standby"),
            Target::ReadWrite if cannot_write => Some("the session is read-only (default_transaction_read_only)"),
            Target::ReadOnly if !cannot_write => Some("the session can write"),
            Target::Primary if server.standby => Some("the server is a standby"),
            Target::Standby | Target::PreferStandby if !server.standby => Some("the server is a primary"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_takes_what_libpq_takes() {
        // Standby and read-only, standby, primary and read-only, primary.
        let servers = [(true, true), (true, false), (false, true), (false, false)];
        for (target, taken) in [
            (Target::Any, [true, true, true, true]),
            (Target::ReadWrite, [false, false, false, true]),
            (Target::ReadOnly, [true, true, true, false]),
            (Target::Primary, [false, false, true, true]),
            (Target::Standby, [true, true, false, false]),
            (Target::PreferStandby, [true, true, false, false]),
        ] {
            let found = servers.map(|(standby, read_only)| target.refusal(Standing { standby, read_only }).is_none());
            assert_eq!(found, taken, "{}", target.word());
        }
    }
}
