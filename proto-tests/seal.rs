//! Placeholder for the seal suite.
