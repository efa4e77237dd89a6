//! Floor 5: the live path: socket to acknowledgement.
