//! Floor 6: file, environment and flags become the jobs' options; every default in one place.
