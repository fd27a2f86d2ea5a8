//! What no file may say.

use super::files::{files_below, repository, shown};

#[test]
fn docs_and_code_do_not_name_registry_hosts() {
    // Packages come through pip and cargo, which know the user's mirrors; an address would not.
    let hosts = [["crates", "io"], ["pypi", "org"], ["pythonhosted", "org"], ["npmjs", "org"]]
        .map(|host| host.join("."));
    let files = files_below(&repository()).into_iter();
    let written = files.filter(|path| !path.ends_with("Cargo.lock"));
    let naming: Vec<_> = written
        .filter(|path| {
            // What is not text names nothing.
            let text = std::fs::read_to_string(path).unwrap_or_default();
            hosts.iter().any(|host| text.contains(host))
        })
        .map(|path| shown(&path))
        .collect();
    assert!(naming.is_empty(), "a package registry's address in:\n{}", naming.join("\n"));
}
