//! Freed memory goes back to the operating system when a stream comes to rest: glibc's allocator keeps it otherwise, in as many arenas as there are threads.

/// Gives back every page of freed memory (`malloc_trim(3)`). It takes a millisecond or a few.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn give_back() {
    unsafe extern "C" {
        /// Of glibc: any thread may call it at any time; it touches freed memory only.
        safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    let _ = malloc_trim(0);
}

/// Other allocators give back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
