//! Placeholder for the wire suite.
