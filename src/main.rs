//! The program: parse, start tracing, run one command, turn the outcome into an exit code.

fn main() {}
