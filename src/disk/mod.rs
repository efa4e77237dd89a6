//! Floor 2: the local disk: tail files, durable create and delete, laying files back. All calls block; async callers use `spawn_blocking`.

pub mod durable;
pub mod lay;
pub mod lock;
pub mod tail_file;
