//! The list of exceptions: what stands there, and no less, may break a rule. A line whose cause has gone has to go too,
//! so the list only gets shorter unless somebody adds a reason.

use std::collections::BTreeMap;

use super::Finding;

/// `rule | path | how often | reason`.
#[derive(Debug)]
struct Exception<'a> {
    rule: &'a str,
    path: &'a str,
    count: usize,
}

fn parse(list: &str) -> Result<Vec<Exception<'_>>, String> {
    let lines = list.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split('|').map(str::trim).collect();
            match fields[..] {
                [rule, path, count, reason] if !reason.is_empty() => {
                    let count = count.parse().map_err(|_| format!("no number of times: {line}"))?;
                    Ok(Exception { rule, path, count })
                }
                _ => Err(format!("not 'rule | path | how often | reason': {line}")),
            }
        })
        .collect()
}

/// The findings that no exception covers, and the exceptions that cover more than there is.
pub fn apply(findings: Vec<Finding>, list: &str) -> Vec<String> {
    let exceptions = match parse(list) {
        Ok(exceptions) => exceptions,
        Err(message) => return vec![format!("exceptions.txt: {message}")],
    };
    let mut groups: BTreeMap<(String, String), Vec<Finding>> = BTreeMap::new();
    for finding in findings {
        groups.entry((finding.rule.to_string(), finding.path.clone())).or_default().push(finding);
    }
    let mut refused = Vec::new();
    for exception in &exceptions {
        let key = (exception.rule.to_string(), exception.path.to_string());
        let found = groups.get(&key).map_or(0, Vec::len);
        if found == exception.count {
            groups.remove(&key);
        } else if found < exception.count {
            groups.remove(&key);
            let what = format!("{} in {}", exception.rule, exception.path);
            refused.push(format!("exceptions.txt: {what}: {found} left of {}: lower the number", exception.count));
        }
    }
    let told = groups.into_values().flatten().map(|f| format!("{}:{}: {}: {}", f.path, f.line, f.rule, f.message));
    refused.extend(told);
    refused
}

#[cfg(test)]
fn finding(line: usize) -> Finding {
    Finding { rule: "panics", path: "src/a.rs".into(), line, message: "unwrap".into() }
}

#[test]
fn a_listed_finding_passes_and_one_more_does_not() {
    let list = "# comment\n\npanics | src/a.rs | 1 | a lock that cannot be poisoned\n";
    assert_eq!(apply(vec![finding(3)], list), [""; 0]);
    assert_eq!(apply(vec![finding(3), finding(4)], list).len(), 2);
    assert_eq!(apply(vec![finding(3)], "").len(), 1);
}

#[test]
fn an_exception_without_a_cause_or_a_reason_is_refused() {
    assert_eq!(apply(vec![], "panics | src/a.rs | 1 | a reason").len(), 1);
    assert_eq!(apply(vec![finding(3)], "panics | src/a.rs | 2 | a reason").len(), 1);
    assert_eq!(apply(vec![], "panics | src/a.rs | 1 |").len(), 1);
}
