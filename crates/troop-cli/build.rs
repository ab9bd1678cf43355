//! Embeds the web page of `troop admin`, if `npm run build` has built it in `page/built`. A published crate
//! contains it; where it is missing, a short page that says so takes its place.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::Path;
use std::{env, fs, io};

/// The files of the page, compressed, with their types.
const FILES: [(&str, &str); 4] = [
    ("index.html", "text/html; charset=utf-8"),
    ("app.js", "text/javascript; charset=utf-8"),
    ("app.css", "text/css; charset=utf-8"),
    ("licences.txt", "text/plain; charset=utf-8"),
];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    // The directory always exists, so nothing is built again while it does not change.
    println!("cargo::rerun-if-changed=page/built");
    let variable = |name: &str| env::var(name).map_err(io::Error::other);
    let built = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("page/built");
    let mut text = String::from("pub(super) const FILES: &[File] = &[\n");
    if FILES.iter().all(|(name, _)| built.join(format!("{name}.gz")).is_file()) {
        for (name, kind) in FILES {
            let path = built.join(format!("{name}.gz"));
            let mut hasher = DefaultHasher::new();
            fs::read(&path)?.hash(&mut hasher);
            let tag = hasher.finish();
            let _ = writeln!(
                text,
                "File {{ name: {name:?}, kind: {kind:?}, tag: \"\\\"{tag:016x}\\\"\", gzip: include_bytes!({path:?}) }},"
            );
        }
    }
    text.push_str("];\n");
    fs::write(Path::new(&variable("OUT_DIR")?).join("page.rs"), text)
}
