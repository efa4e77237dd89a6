//! What a catalog says of a repository, in one order and without anything that only this catalog knows: two that were made in different ways can be compared.

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::Serialize;

use super::{Catalog, Object};
use crate::error::Result;
use crate::seal::content::hex;

/// How many differences are told in full.
const MOST: usize = 20;

/// Objects, histories and groups; not heartbeats, not what was acknowledged, not when anything was learned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Dump {
    pub objects: Vec<Line>,
    /// Content of the history files, as text.
    pub histories: BTreeMap<u32, String>,
    /// Timeline and first byte.
    pub groups: Vec<(u32, String)>,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Line {
    pub timeline: u32,
    pub start: String,
    pub end: String,
    pub partial: bool,
    pub hash: String,
    pub stored_bytes: u64,
    pub records: u64,
    pub commits: u64,
    pub aborts: u64,
    pub checkpoints: u64,
    /// Microseconds since 2000-01-01 UTC.
    pub times: Option<(i64, i64)>,
    pub xids: Option<(u32, u32)>,
}

impl From<Object> for Line {
    fn from(object: Object) -> Line {
        Line {
            timeline: object.timeline.0,
            start: object.start.to_string(),
            end: object.end.to_string(),
            partial: object.partial,
            hash: hex(&object.hash),
            stored_bytes: object.stored,
            records: object.records,
            commits: object.commits,
            aborts: object.aborts,
            checkpoints: object.checkpoints,
            times: object.times.map(|(min, max)| (min.0, max.0)),
            xids: object.xids,
        }
    }
}

impl Catalog {
    pub fn dump(&self) -> Result<Dump> {
        let histories = self.histories()?.into_iter();
        Ok(Dump {
            objects: self.objects()?.into_iter().map(Line::from).collect(),
            histories: histories.map(|(t, text)| (t.0, String::from_utf8_lossy(&text).into_owned())).collect(),
            groups: self.groups()?.into_iter().map(|(timeline, first)| (timeline.0, first.to_string())).collect(),
        })
    }
}

impl Dump {
    /// What differs between this catalog and what the repository says, one line each; empty when they are equal.
    pub fn differences(&self, repository: &Dump) -> Vec<String> {
        let mut told = Vec::new();
        let key = |line: &Line| (line.timeline, line.start.clone(), line.partial);
        let name = |(timeline, start, partial): &(u32, String, bool)| {
            format!("{} of timeline {timeline} at {start}", if *partial { "the end" } else { "WAL" })
        };
        let by_key = |dump: &Dump| dump.objects.iter().map(|line| (key(line), line.clone())).collect();
        compare(&by_key(self), &by_key(repository), name, &mut told);
        let history = |timeline: &u32| format!("the history of timeline {timeline}");
        compare(&self.histories, &repository.histories, history, &mut told);
        let set = |dump: &Dump| dump.groups.iter().map(|group| (group.clone(), ())).collect::<BTreeMap<_, _>>();
        let group = |(timeline, first): &(u32, String)| format!("the group summary of timeline {timeline} at {first}");
        compare(&set(self), &set(repository), group, &mut told);
        if told.len() > MOST {
            let more = told.len() - MOST;
            told.truncate(MOST);
            told.push(format!("and {more} more"));
        }
        told
    }
}

fn compare<K: Ord, V: PartialEq + Debug>(
    own: &BTreeMap<K, V>,
    repository: &BTreeMap<K, V>,
    name: impl Fn(&K) -> String,
    told: &mut Vec<String>,
) {
    for (key, stored) in repository {
        match own.get(key) {
            None => told.push(format!("{} is stored and not in the catalog", name(key))),
            Some(noted) if noted != stored => {
                told.push(format!("{} is noted as {noted:?}, and the repository says {stored:?}", name(key)));
            }
            Some(_) => {}
        }
    }
    for key in own.keys().filter(|key| !repository.contains_key(key)) {
        told.push(format!("{} is in the catalog and not stored", name(key)));
    }
}
