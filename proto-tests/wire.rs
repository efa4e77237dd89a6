//! The protocol machines, with transcripts of real servers, damaged bytes and servers that misbehave.

#[path = "wire/damage.rs"]
mod damage;
#[path = "wire/fake.rs"]
mod fake;
#[path = "wire/incremental.rs"]
mod incremental;
#[path = "fuzz/fuzz_targets/incremental_file.rs"]
mod incremental_file;
#[path = "wire/replay.rs"]
mod replay;
#[path = "wire/states.rs"]
mod states;
mod support;
#[path = "wire/texts.rs"]
mod texts;
#[path = "wire/transcript.rs"]
mod transcript;
#[path = "wire/vectors.rs"]
mod vectors;
