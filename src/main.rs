//! The program: hands the command line to `cli` and leaves with its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(walrecv::cli::main(std::env::args_os()))
}
