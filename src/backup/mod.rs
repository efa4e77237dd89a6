//! Floor 5: base backups; finished only when their WAL is durable.
