//! Floor 2: age recipients and identities, and the repository's own identity and secret.
//!
//! Three levels: recipients open the repository identity (one age file each, which also carries the secret); writers wrap a data key for
//! the identity's public key; object keys are derived (`seal`).

pub mod ring;
pub mod setup;
