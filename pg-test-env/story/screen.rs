//! What the reader sees: numbered steps, aligned figures, and for each promise whether it held.

use std::time::{Duration, Instant};

use crate::support::walrecv::Output;

/// Prints, and counts what did not hold.
pub struct Screen {
    begun: Instant,
    steps: u32,
    held: u32,
    failed: Vec<String>,
}

impl Screen {
    pub fn new(title: &str) -> Screen {
        println!("{title}");
        Screen { begun: Instant::now(), steps: 0, held: 0, failed: Vec::new() }
    }

    /// Begins the next step.
    pub fn step(&mut self, text: &str) {
        self.steps += 1;
        println!("\n{}. {text}  [{:.0} s]", self.steps, self.begun.elapsed().as_secs_f64());
    }

    pub fn figure(&self, label: &str, value: impl AsRef<str>) {
        println!("   {label:<24}{}", value.as_ref());
    }

    /// A command of walrecv as a user would type it.
    pub fn command(&self, args: &[String]) {
        let quoted = args.iter().map(|arg| if arg.contains([' ', '\'']) { format!("'{arg}'") } else { arg.clone() });
        println!("   $ walrecv {}", quoted.collect::<Vec<_>>().join(" "));
    }

    /// What a command printed, as it stands.
    pub fn printed(&self, output: &Output) {
        for line in output.stdout.lines().chain(output.stderr.lines()) {
            println!("   | {line}");
        }
    }

    /// Something that has to hold for the demo to pass.
    pub fn check(&mut self, holds: bool, text: impl Into<String>) {
        let text = text.into();
        println!("   {:<8}{text}", if holds { "ok" } else { "FAILED" });
        match holds {
            true => self.held += 1,
            false => self.failed.push(text),
        }
    }

    /// The last words; whether all held.
    pub fn verdict(&self, broken: Option<&str>) -> bool {
        let took = self.begun.elapsed().as_secs_f64();
        println!();
        match broken {
            Some(why) => println!("FAIL    the story broke off in step {}: {why}", self.steps),
            None if self.failed.is_empty() => println!("PASS    all {} checks held, in {took:.0} s", self.held),
            None => println!("FAIL    {} of {} checks", self.failed.len(), self.failed.len() as u32 + self.held),
        }
        for text in &self.failed {
            println!("        {text}");
        }
        broken.is_none() && self.failed.is_empty()
    }
}

pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// `stored` as a share of `raw`.
pub fn share(stored: u64, raw: u64) -> String {
    format!("{} for {} raw: {:.0} %", mib(stored), mib(raw), 100.0 * stored as f64 / raw.max(1) as f64)
}

pub fn seconds(time: Duration) -> String {
    match time.as_millis() {
        0..1000 => format!("{} ms", time.as_millis()),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}
