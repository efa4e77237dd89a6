//! Placeholder for the live suite.
