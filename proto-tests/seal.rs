//! The object format and the keys: round trips, every way of being wrong, stored vectors, and an independent age implementation.

#[path = "seal/frames.rs"]
mod frames;
#[path = "seal/keys.rs"]
mod keys;
#[path = "seal/round_trip.rs"]
mod round_trip;
#[path = "seal/support.rs"]
mod support;
#[path = "seal/tails.rs"]
mod tails;
#[path = "seal/vectors.rs"]
mod vectors;
#[path = "seal/wrong.rs"]
mod wrong;
