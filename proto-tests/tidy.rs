//! Placeholder for the tidy suite.
