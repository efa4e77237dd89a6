//! Floor 2: the local disk: tail files, durable create and delete, laying files back, records sorted by key. All calls block; async callers use [`lane`].
//!
//! [`medium`] is the seam to the file systems: [`durable`] and [`tail_file`] reach them only through it.

pub mod ahead;
pub mod claim;
pub mod clear;
pub mod desk;
pub mod durable;
pub mod lane;
pub mod lay;
pub mod lock;
pub mod medium;
pub mod private;
pub mod room;
pub mod scratch;
pub mod sorted;
pub mod spare;
pub mod staged;
pub mod tail_file;
pub mod throwaway;
