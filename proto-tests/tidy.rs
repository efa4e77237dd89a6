//! The house rules, read off the sources. Each rule is shown to fire on made-up sources in its own file.
//! An exception needs a line with a reason in `tidy/exceptions.txt`, which may only get shorter.

#[path = "tidy/mod.rs"]
mod tidy;
