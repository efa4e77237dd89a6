//! Incremental files of any bytes. The same is asked of some thousand damaged ones in every run of the tests (`wire::incremental`).
#![no_main]

mod incremental_file;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    incremental_file::look(input);
});
