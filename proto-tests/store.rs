//! Placeholder for the store suite.
