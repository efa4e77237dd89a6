//! Examples at the end of the help. Each line that begins with `walrecv` is one that the program takes; what follows two spaces says what it does.

pub const RESTORE: &str = "\
Examples:
  walrecv restore --target-time '2026-11-21 14:05:00+00' --plan  where it would land; changes nothing
  walrecv restore --target-time '10 min ago' --pgdata /srv/restored
  walrecv restore --latest --pgdata /srv/look --start --scratch --port 5433  a server that reaches nobody
  walrecv restore --target-xid 7421 --exclusive --pgdata /srv/restored --start  up to just before a transaction
  walrecv restore --latest --delta --pgdata /var/lib/postgresql/17/main --start  over an old primary that is stopped
  walrecv restore --latest --databases shop,billing --pgdata /srv/shop
  walrecv restore --latest --pgdata /srv/restored --tablespace-mapping /fast=/srv/fast
  walrecv restore --standby --pgdata /srv/standby --primary-conninfo 'host=db1 user=replicator' --primary-slot standby1

Exit codes: 2 an occupied directory or a taken port, 12 key, 15 gap in WAL, 16 damage, 19 target (with the nearest that can be reached).";

pub const BACKUP: &str = "\
Examples:
  walrecv backup
  walrecv backup --label 'before the migration' --checkpoint spread  gentle to a busy server: the checkpoint takes minutes
  walrecv backup --max-rate 50M --progress    at most 50 MB a second; says how it goes
  walrecv backup --quiet --output json  for scripts: one object when it is complete

It is complete when all its WAL is stored. What an interrupted one stored is used by the next; `walrecv list` shows both.
Exit codes: 11 another one runs here, 13 another server, 15 and 18 its WAL does not come, 16 what came is damaged, 17 the server.";

pub const EXPIRE: &str = "\
Examples:
  walrecv expire --backup 20260131T020000Z --plan  what would go, what stays and why, what that frees; changes nothing
  walrecv expire --backup 20260131T020000Z
  walrecv expire  once a day: frees what deleted and interrupted backups left, a day after they went
  walrecv expire --backup 20260131T020000Z --delete-delay 0 --yes  all in one run, where nobody restores

Every backup is a full backup: any may go. WAL is not deleted.
Exit codes: 2 no such backup, 11 another expiry runs here, 16 something cannot be read, 20 refused: the last one, or one in use.";

pub const EXTRACT: &str = "\
Examples:
  walrecv extract --table orders --target-time '2026-11-21 13:40:00+00' --file orders.sql
  walrecv extract --table public.orders --database shop --before-xid 7421 --file orders.sql  as it was before a transaction
  walrecv extract --database shop --target-lsn 0/5A2B9C8 --exclusive --file shop.sql  a whole database
  walrecv extract --table '\"Odd Name\"' --latest --data-only --file rows.sql
  walrecv find --last 2h  tells the transaction and the position, and prints such a line";

pub const FIND: &str = "\
Examples:
  walrecv find --last 2h
  walrecv find --from '2026-11-21 13:00' --to '2026-11-21 14:00' --rows 100  smaller deletions too
  walrecv find --last 1d --table public.orders --database shop
  walrecv find --last 1d --output json

Under each line stand the restore that stops just before, and the extract of its tables.";

pub const DRILL: &str = "\
Examples:
  walrecv drill  the newest backup, to the end of the archive
  walrecv drill --target-time random --assert 'select count(*) > 0 from orders' --database shop
  walrecv drill --backup latest --rpo 5min --rto 1h --report /var/log/walrecv-drill.json
  walrecv drill --target-xid 7421 --exclusive --target-timeline 2 --skip amcheck

Exit codes: 0 passed, 1 a check failed or the restore did, 16 something is damaged, 19 target.";

pub const WAL_FETCH: &str = "\
In postgresql.conf, on one line; `restore` writes it by itself:
  restore_command = '/usr/local/bin/walrecv --config /etc/walrecv/walrecv.toml wal-fetch %f %p'

Examples, in the data directory and as the server's user:
  walrecv wal-fetch 000000010000000000000007 pg_wal/RECOVERYXLOG
  walrecv --config /etc/walrecv/walrecv.toml wal-fetch 00000002.history /tmp/00000002.history

Exit codes: 0 it is there, 1 it is known not to exist, above 125 it could not be found out: PostgreSQL stops then.";
