//! The built program as a user runs it: whole stories, every documented refusal, and what `wal-fetch` answers.

#[path = "cli/alarms.rs"]
mod alarms;
#[path = "cli/archive_refusals.rs"]
mod archive_refusals;
#[path = "cli/backups.rs"]
mod backups;
#[path = "cli/before.rs"]
mod before;
#[path = "cli/catalog.rs"]
mod catalog;
#[path = "cli/check.rs"]
mod check;
#[path = "cli/databases.rs"]
mod databases;
#[path = "cli/deleting.rs"]
mod deleting;
#[path = "cli/disaster.rs"]
mod disaster;
#[path = "cli/drill.rs"]
mod drill;
#[path = "cli/equality.rs"]
mod equality;
#[path = "cli/extract.rs"]
mod extract;
#[path = "cli/fetch_codes.rs"]
mod fetch_codes;
#[path = "cli/find.rs"]
mod find;
#[path = "cli/hurt_tail.rs"]
mod hurt_tail;
#[path = "cli/idle.rs"]
mod idle;
#[path = "cli/killed.rs"]
mod killed;
#[path = "cli/looking.rs"]
mod looking;
#[path = "cli/lost_end.rs"]
mod lost_end;
#[path = "cli/many.rs"]
mod many;
#[path = "cli/no_slot.rs"]
mod no_slot;
#[path = "cli/planted.rs"]
mod planted;
#[path = "cli/promoted.rs"]
mod promoted;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/restored_primary.rs"]
mod restored_primary;
#[path = "cli/restored_standby.rs"]
mod restored_standby;
#[path = "cli/resumed.rs"]
mod resumed;
#[path = "cli/server_refusals.rs"]
mod server_refusals;
#[path = "cli/set_back.rs"]
mod set_back;
#[path = "cli/shapes.rs"]
mod shapes;
#[path = "cli/silent.rs"]
mod silent;
#[path = "cli/site.rs"]
mod site;
#[path = "cli/stalled.rs"]
mod stalled;
#[path = "cli/standbys.rs"]
mod standbys;
#[path = "cli/status.rs"]
mod status;
#[path = "cli/stories.rs"]
mod stories;
mod support;
#[path = "cli/tablespaces.rs"]
mod tablespaces;
#[path = "cli/torn.rs"]
mod torn;
#[path = "cli/turned_back.rs"]
mod turned_back;
#[path = "cli/way_out.rs"]
mod way_out;
#[path = "cli/words.rs"]
mod words;
