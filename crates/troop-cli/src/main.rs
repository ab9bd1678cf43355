//! `troop`: runs any program as a cluster.

fn main() -> std::process::ExitCode {
    troop_cli::main()
}
