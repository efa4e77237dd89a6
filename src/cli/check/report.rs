//! What was found: one line each, with what to do about it.

use serde::Serialize;

use crate::cli::args::Common;
use crate::cli::{exit, output};
use crate::error::{Error, Kind};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One finding. The names of the fields, and of the checks, are stable.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub verdict: Verdict,
    pub found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Exit code that this finding asks for; 0 unless it failed.
    code: u8,
    #[serde(skip)]
    kind: Option<Kind>,
}

#[derive(Default)]
pub struct Report {
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.add(check, Verdict::Ok, found.into(), None, None);
    }

    pub fn warn(&mut self, check: &'static str, found: impl Into<String>, advice: impl Into<String>) {
        self.add(check, Verdict::Warn, found.into(), Some(advice.into()), None);
    }

    pub fn fail(&mut self, check: &'static str, error: &Error) {
        self.add(check, Verdict::Fail, error.to_string(), error.advice().map(str::to_owned), Some(error.kind()));
    }

    fn add(
        &mut self,
        check: &'static str,
        verdict: Verdict,
        found: String,
        advice: Option<String>,
        kind: Option<Kind>,
    ) {
        let code = kind.map_or(0, exit::code);
        self.findings.push(Finding { check, verdict, found, advice, code, kind });
    }

    /// The first finding that failed decides the exit code.
    pub fn first_failure(&self) -> Option<Error> {
        let (finding, kind) = self.findings.iter().find_map(|finding| Some((finding, finding.kind?)))?;
        let error = Error::new(kind, format!("check failed at {}: {}", finding.check, finding.found));
        Some(error.hint(finding.advice.as_deref().unwrap_or("all findings stand on standard output")))
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    pub fn show(&self, common: &Common) {
        let [ok, warn, fail] = [Verdict::Ok, Verdict::Warn, Verdict::Fail].map(|verdict| self.count(verdict));
        if common.output == output::Format::Json {
            let counts = serde_json::json!({ "ok": ok, "warn": warn, "fail": fail });
            return output::json(&serde_json::json!({ "findings": self.findings, "counts": counts }));
        }
        for finding in &self.findings {
            let mark = match finding.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            output::line(format!("{mark}  {:<30}{}", finding.check, finding.found));
            if let Some(advice) = &finding.advice {
                output::line(format!("      {:<30}→ {advice}", ""));
            }
        }
        output::line(format!("{ok} ok, {warn} to look at, {fail} failed"));
    }
}
