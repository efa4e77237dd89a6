//! Floor 5: restore: plan (pure), lay back, fetch WAL, recovery settings.
