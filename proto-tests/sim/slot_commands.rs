//! What a server answers to questions and commands about its slot.

use super::cluster::{Cluster, SLOT, Slot};
use crate::support::walsender_words as words;

impl Cluster {
    pub fn create_slot(&self) -> Vec<u8> {
        let made = self.change(|state| {
            let free = state.slot.is_none();
            if free {
                state.slot = Some(Slot::reserved(state));
            }
            free
        });
        self.trace.say(format!("server: CREATE_REPLICATION_SLOT {}", if made { "" } else { "42710" }));
        if !made {
            return words::error("ERROR", "42710", "replication slot \"sim\" already exists", "ReplicationSlotCreate");
        }
        let columns = ["slot_name", "consistent_point", "snapshot_name", "output_plugin"];
        let row = [Some(SLOT.to_owned()), Some("0/0".to_owned()), None, None];
        words::result(&columns, Some(&row), "CREATE_REPLICATION_SLOT")
    }

    pub fn drop_slot(&self) -> Vec<u8> {
        let refused = self.change(|state| match &state.slot {
            None => Some(("42704", "replication slot \"sim\" does not exist")),
            Some(slot) if slot.active.is_some() => Some(("55006", "replication slot \"sim\" is active for PID 1")),
            Some(_) => {
                state.slot = None;
                None
            }
        });
        self.trace.say(format!("server: DROP_REPLICATION_SLOT {}", refused.map_or("", |(code, _)| code)));
        match refused {
            Some((code, text)) => words::error("ERROR", code, text, "ReplicationSlotAcquire"),
            None => words::complete("DROP_REPLICATION_SLOT"),
        }
    }

    /// Answers [`walrecv::receive::slot::question`].
    pub fn slot_view(&self) -> Vec<u8> {
        let columns =
            ["slot_type", "restart_lsn", "active_pid", "wal_status", "safe", "invalidation", "current", "limit"];
        let state = self.state();
        let row = state.slot.as_ref().map(|slot| {
            let gone = slot.restart.is_some_and(|lsn| lsn.align_down(state.segment) < state.removed);
            let status = if slot.lost || gone { "lost" } else { "reserved" };
            [
                Some("physical".to_owned()),
                slot.restart.map(|lsn| lsn.to_string()),
                slot.active.map(|id| id.to_string()),
                Some(status.to_owned()),
                None,
                None,
                Some(state.end().to_string()),
                Some("-1".to_owned()),
            ]
        });
        words::result(&columns, row.as_ref().map(|row| row.as_slice()), "SELECT 1")
    }
}
