//! Placeholder for the cli suite.
