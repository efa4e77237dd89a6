//! Joining what several objects hold of one segment (pure).

/// Bytes of a segment, from `offset` on, as one object holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub name: String,
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// Two objects say different things about one byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Disagree {
    pub first: String,
    pub second: String,
    /// Offset in the segment of the first byte that differs.
    pub offset: u64,
}

/// The longest run of bytes from the segment's start that the objects hold together. All that overlap in it must agree.
pub(super) fn join(mut runs: Vec<Run>) -> Result<Vec<u8>, Disagree> {
    runs.sort_by_key(|run| run.offset);
    let mut joined: Vec<u8> = Vec::new();
    // Who gave which bytes, to name both when they disagree.
    let mut givers: Vec<(u64, String)> = Vec::new();
    for run in runs {
        let Some(known) = joined.get(run.offset as usize..) else { break };
        let overlap = known.len().min(run.bytes.len());
        let (again, new) = run.bytes.split_at(overlap);
        if let Some(at) = known.iter().zip(again).position(|(a, b)| a != b) {
            let offset = run.offset + at as u64;
            let first = givers.iter().rev().find(|(from, _)| *from <= offset).map(|(_, name)| name.clone());
            return Err(Disagree { first: first.unwrap_or_default(), second: run.name, offset });
        }
        if !new.is_empty() {
            givers.push((joined.len() as u64, run.name));
            joined.extend_from_slice(new);
        }
    }
    Ok(joined)
}

/// As [`join`], from extents alone: how many bytes from the segment's start are there.
pub(super) fn reach(mut extents: Vec<(u64, u64)>) -> u64 {
    extents.sort_unstable();
    let mut end = 0;
    for (from, to) in extents {
        if from > end {
            break;
        }
        end = end.max(to);
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, offset: u64, bytes: &[u8]) -> Run {
        Run { name: name.to_owned(), offset, bytes: bytes.to_vec() }
    }

    #[test]
    fn joins_up_to_the_first_hole() {
        let runs = vec![run("d", 9, b"zz"), run("b", 3, b"def"), run("a", 0, b"abcd"), run("c", 1, b"bc")];
        assert_eq!(join(runs).unwrap(), b"abcdef");
        assert_eq!(join(vec![run("a", 1, b"x")]).unwrap(), b"");
        assert_eq!(join(vec![]).unwrap(), b"");
    }

    #[test]
    fn names_both_that_disagree() {
        let runs = vec![run("a", 0, b"abc"), run("b", 3, b"def"), run("c", 2, b"cdXf")];
        let expected = Disagree { first: "b".to_owned(), second: "c".to_owned(), offset: 4 };
        // c begins before b and is joined before it.
        let found = join(runs).unwrap_err();
        assert_eq!(found.offset, expected.offset);
        assert_eq!([found.first, found.second].iter().collect::<std::collections::BTreeSet<_>>().len(), 2);
    }

    #[test]
    fn extents_reach_as_far_as_the_bytes() {
        assert_eq!(reach(vec![(3, 6), (0, 4), (9, 11)]), 6);
        assert_eq!(reach(vec![(1, 2)]), 0);
        assert_eq!(reach(vec![(0, 9), (2, 3), (9, 10)]), 10);
    }
}
