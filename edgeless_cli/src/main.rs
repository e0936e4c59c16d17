//! `edgeless_cli`.

fn main() -> std::process::ExitCode {
    edgeless_cli::run()
}
