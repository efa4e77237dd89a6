//! Laying a data directory back: files at full size, written in place by several threads, fsync of all before success. Owned by restore.
