//! Placeholder for the wal suite.
