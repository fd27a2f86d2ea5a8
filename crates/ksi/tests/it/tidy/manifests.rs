//! Dependencies: each has a reason, a user, and points down.

use std::collections::BTreeSet;
use std::path::Path;

use toml::Table;

use super::files::{crates, read, repository};

/// Our crates from the bottom up: each may depend only on those before it.
const LAYERS: [&str; 12] = [
    "ksi-protocol",
    "ksi-record",
    "ksi-state",
    "ksi-process",
    "ksi-local",
    "ksi-journal",
    "ksi-ring",
    "ksi-runtime",
    "ksi-kernel",
    "ksi-socket",
    "ksi-plugins",
    "ksi",
];

const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

#[test]
fn every_dependency_has_a_reason() {
    let used = external_dependencies();
    let architecture = read(&repository().join("ARCHITECTURE.md"));
    let explained = explained(&architecture);
    let silent: Vec<_> = used.difference(&explained).cloned().collect();
    let stale: Vec<_> = explained.difference(&used).cloned().collect();
    assert!(silent.is_empty(), "no reason in ARCHITECTURE.md, Dependencies: {silent:?}");
    assert!(stale.is_empty(), "a reason in ARCHITECTURE.md, but no use: {stale:?}");
}

#[test]
fn every_dependency_of_the_workspace_is_used() {
    let workspace = manifest(&repository().join("Cargo.toml"));
    let declared = workspace["workspace"]["dependencies"].as_table().expect("a table").keys();
    let used: BTreeSet<_> = crates().iter().flat_map(|package| dependencies(package)).collect();
    let unused: Vec<_> = declared.filter(|name| !used.contains(*name)).collect();
    assert!(unused.is_empty(), "no crate uses {unused:?}");
}

#[test]
fn dependencies_point_down_only() {
    let layer = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let mut upward = Vec::new();
    for package in crates() {
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let own = layer(&name).unwrap_or_else(|| panic!("`{name}` has no layer"));
        let table = manifest(&package.join("Cargo.toml"));
        let below = table.get("dependencies").and_then(|found| found.as_table());
        let names = below.into_iter().flat_map(Table::keys).filter(|name| is_ours(name));
        let wrong = names.filter(|name| layer(name).is_none_or(|layer| layer >= own));
        upward.extend(wrong.map(|below| format!("{name} -> {below}")));
    }
    assert!(upward.is_empty(), "these point up: {upward:?}");
}

fn external_dependencies() -> BTreeSet<String> {
    let all = crates().into_iter().flat_map(|package| dependencies(&package));
    all.filter(|name| !is_ours(name)).collect()
}

fn is_ours(name: &str) -> bool {
    name == "ksi" || name.starts_with("ksi-")
}

/// The names a crate depends on, whatever the kind and the platform.
fn dependencies(package: &Path) -> BTreeSet<String> {
    let manifest = manifest(&package.join("Cargo.toml"));
    let platforms = manifest.get("target").and_then(|targets| targets.as_table());
    let platforms = platforms.into_iter().flat_map(Table::values).filter_map(|t| t.as_table());
    let tables = platforms.chain([&manifest]);
    let kinds = tables.flat_map(|table| KINDS.map(|kind| table.get(kind)));
    let names = kinds.flatten().filter_map(|kind| kind.as_table()).flat_map(Table::keys);
    names.cloned().collect()
}

pub(super) fn manifest(path: &Path) -> Table {
    read(path).parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names before the colon of each line `` - `name`: reason `` under `## Dependencies`.
fn explained(architecture: &str) -> BTreeSet<String> {
    let section = architecture.lines().skip_while(|line| line.trim() != "## Dependencies").skip(1);
    let lines = section.take_while(|line| !line.starts_with("## "));
    let reasons = lines.filter_map(|line| line.strip_prefix("- `")?.split_once("`: "));
    let reasons = reasons.filter(|(_, reason)| !reason.trim().is_empty());
    reasons.flat_map(|(names, _)| names.split("`, `").map(str::to_owned)).collect()
}

#[test]
fn a_reason_is_a_line_of_the_section() {
    let text = "## Code\n- `far`: away\n## Dependencies\n- `bytes`: shared lines\n- `mute`:\n\
                - `candle-core`, `candle-transformers`: the model\nprose\n## More\n- `far`: away\n";
    let names: Vec<_> = explained(text).into_iter().collect();
    assert_eq!(names, ["bytes", "candle-core", "candle-transformers"]);
}
