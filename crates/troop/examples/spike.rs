//! spike
#![allow(clippy::print_stderr)]
fn main() {
    let script = std::env::args().nth(1).unwrap_or_default();
    let r = troop::Cluster::builder()
        .workers(2)
        .setup(troop::Setup::new().script(script).args(Vec::<String>::new()).own_process_group(true).stderr(troop::Stdio::Forward))
        .on_event(|e| eprintln!("{e}"))
        .run();
    eprintln!("{r:?}");
}
