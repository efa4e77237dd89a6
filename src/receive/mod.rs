//! Floor 5: the live path: socket to acknowledgement.

pub mod acknowledge;
pub mod resume;
