//! Floor 7: arguments, one file per command, output, the exit-code table.
