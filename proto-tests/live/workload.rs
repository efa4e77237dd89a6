//! What may happen to a database between two backups, chosen by a seed: rows, relations and databases come, change and go.

use crate::support::{Seed, Server, TempDir};

/// Changes a server's databases in random ways. Nothing runs when it has returned.
pub struct Workload {
    made: u32,
}

impl Workload {
    /// Some tables to begin with, one of them in a tablespace of its own (the folder `space` of `places`).
    pub fn begin(server: &Server, places: &TempDir) -> Workload {
        let space = places.postgres_dir("space");
        server.sql(&format!("create tablespace space location '{}'", space.display()));
        let mut workload = Workload { made: 0 };
        for rows in [20_000, 5_000, 100] {
            workload.table(server, rows, "");
        }
        workload.table(server, 10_000, "tablespace space");
        server.sql("create unlogged table fleeting (n int); insert into fleeting values (1)");
        workload
    }

    fn table(&mut self, server: &Server, rows: u64, place: &str) {
        self.made += 1;
        let name = format!("w{}", self.made);
        server.sql(&format!("create table {name} (n bigint, t text) {place}"));
        server.sql(&format!(
            "insert into {name} select n, md5(n::text) || repeat('x', (n % 300)::int) from generate_series(1, {rows}) n"
        ));
        server.sql(&format!("create index on {name} (n) {place}"));
    }

    /// A few random changes; printed, so that a failure tells what led to it.
    pub fn go_on(&mut self, seed: &mut Seed, server: &Server) {
        for _ in 0..seed.between(3, 7) {
            self.change(seed, server);
        }
        if seed.below(2) == 0 {
            server.sql("vacuum");
        }
        server.sql("checkpoint");
    }

    fn change(&mut self, seed: &mut Seed, server: &Server) {
        let tables =
            server.sql("select relname from pg_class where relname ~ '^w[0-9]+$' and relkind = 'r' order by relname");
        let tables: Vec<&str> = tables.lines().collect();
        let Some(table) = tables.get(seed.below(tables.len().max(1) as u64) as usize) else {
            return self.table(server, 1000, "");
        };
        let part = seed.between(2, 40);
        let sql = match seed.below(15) {
            0 | 1 => format!("update {table} set t = t || 'u' where n % {part} = 0"),
            2 => format!("delete from {table} where n % {part} = 0"),
            3 => {
                // The end of the file goes, and perhaps comes back.
                let more =
                    format!("insert into {table} select n, 'new' from generate_series(1, {}) n", seed.below(2000));
                return [
                    format!("delete from {table} where ctid >= (select ('(' || relpages / {part} || ',0)')::tid from pg_class where relname = '{table}')"),
                    format!("vacuum (analyze) {table}"),
                    if seed.below(2) == 0 { more } else { "select 1".into() },
                ]
                .iter()
                .for_each(|sql| self.run(server, sql));
            }
            4 => format!("vacuum full {table}"),
            5 => format!("truncate {table}; insert into {table} select n, 'again' from generate_series(1, {part}) n"),
            6 => return self.table(server, seed.below(3000), ["", "tablespace space"][seed.below(2) as usize]),
            7 if tables.len() > 2 => format!("drop table {table}"),
            8 => {
                self.made += 1;
                let strategy = ["wal_log", "file_copy"][seed.below(2) as usize];
                format!("create database d{} strategy {strategy}", self.made)
            }
            9 => {
                let name = server.sql("select datname from pg_database where datname ~ '^d[0-9]+$' order by 1 limit 1");
                if name.is_empty() { "select 1".into() } else { format!("drop database {name}") }
            }
            10 | 11 => format!("insert into {table} select n, md5(n::text) from generate_series(1, {}) n", part * 500),
            12 => format!("reindex table {table}"),
            // Pages that only an aborted transaction has touched.
            13 => format!(
                "begin; insert into {table} select n, repeat('r', 500) from generate_series(1, {}) n; rollback",
                part * 50
            ),
            _ => format!("vacuum (freeze, truncate true) {table}"),
        };
        self.run(server, &sql);
    }

    fn run(&self, server: &Server, sql: &str) {
        println!("{sql}");
        server.psql(sql);
    }
}
