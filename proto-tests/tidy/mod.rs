//! One file per group of rules; each rule takes sources and returns findings. `house.rs` runs them all on the tree.

mod exceptions;
mod floors;
mod habits;
mod house;
mod lex;
mod packages;
mod paths;
mod purity;
mod scenarios;
mod shape;
mod source;
mod tables;
mod tree;

pub use source::{Finding, Source};
