//! Which files belong to a crate: those that `mod` declarations lead to.

use std::path::{Path, PathBuf};

use super::files::{files_with_extension, read, shown};
use super::manifests::manifest;
use super::rust::{Declaration, RustFile};

/// A file that the compiler reads, reached by `mod` declarations.
pub(super) struct Module {
    pub(super) path: PathBuf,
    pub(super) rust: RustFile,
    /// Whether a declaration on the way is behind one of the switches.
    pub(super) behind: bool,
}

/// The files from which Cargo builds a crate: library, binaries, tests, benches and examples.
pub(super) fn roots(package: &Path) -> Vec<PathBuf> {
    let mut roots = vec![package.join("build.rs")];
    roots.extend(["src/lib.rs", "src/main.rs"].map(|root| package.join(root)));
    for folder in ["src/bin", "tests", "benches", "examples"].map(|name| package.join(name)) {
        roots.extend(files_with_extension(&folder, "rs").into_iter().filter(|file| {
            let alone = file.parent() == Some(&folder);
            let main = file.ends_with("main.rs")
                && file.ancestors().nth(2).is_some_and(|above| above == folder);
            alone || main
        }));
    }
    roots.extend(declared_roots(package));
    roots.retain(|root| root.exists());
    roots
}

/// The files that the manifest names itself, because they lie where Cargo does not look.
fn declared_roots(package: &Path) -> Vec<PathBuf> {
    let manifest = manifest(&package.join("Cargo.toml"));
    let kinds = ["bin", "test", "bench", "example"].map(|kind| manifest.get(kind)?.as_array());
    let targets = kinds.into_iter().flatten().flatten();
    targets.filter_map(|target| Some(package.join(target.get("path")?.as_str()?))).collect()
}

/// A file and all the files its `mod` declarations lead to.
pub(super) fn tree(root: &Path, switches: &[&str]) -> Vec<Module> {
    let mut waiting = vec![(root.to_owned(), false)];
    let mut tree = Vec::new();
    while let Some((path, behind)) = waiting.pop() {
        let rust = parse(&path);
        let lines_behind = rust.lines_behind(switches);
        let folder = folder_of_children(&path, path == root);
        for declaration in rust.declarations() {
            let behind = behind || lines_behind.contains(&declaration.line);
            waiting.extend(file_of(&folder, &declaration).map(|file| (file, behind)));
        }
        let behind = behind || lines_behind.is_superset(&rust.code_lines());
        tree.push(Module { path, rust, behind });
    }
    tree
}

/// Parses a file that must be Rust.
pub(super) fn parse(path: &Path) -> RustFile {
    RustFile::parse(&read(path))
        .unwrap_or_else(|error| panic!("cannot parse {}: {error}", shown(path)))
}

fn folder_of_children(path: &Path, root: bool) -> PathBuf {
    if root || path.ends_with("mod.rs") {
        return path.parent().unwrap_or(path).to_owned();
    }
    path.with_extension("")
}

fn file_of(folder: &Path, declaration: &Declaration) -> Option<PathBuf> {
    let base = declaration.path.iter().fold(folder.to_owned(), |path, name| path.join(name));
    [base.with_extension("rs"), base.join("mod.rs")].into_iter().find(|file| file.exists())
}

#[test]
fn what_a_module_declares_lies_behind_its_condition_too() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tidy-modules");
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("can make folders");
        std::fs::write(path, text).expect("can write files");
    };
    write("lib.rs", "mod plain;\n#[cfg(feature = \"testing\")]\npub mod testing;\n");
    write("plain.rs", "mod inner {\n    mod deep;\n}\n");
    write("plain/inner/deep.rs", "#![cfg(test)]\nfn a() {}\n");
    write("testing/mod.rs", "mod clock;\n");
    write("testing/clock.rs", "fn a() {}\n");
    write("lost.rs", "fn a() {}\n");

    let mut files: Vec<_> = tree(&folder.join("lib.rs"), &["test", "testing"])
        .into_iter()
        .map(|module| {
            (module.path.strip_prefix(&folder).expect("inside").to_owned(), module.behind)
        })
        .collect();
    files.sort();
    let expected = [
        ("lib.rs", false),
        ("plain/inner/deep.rs", true),
        ("plain.rs", false),
        ("testing/clock.rs", true),
        ("testing/mod.rs", true),
    ];
    assert_eq!(files, expected.map(|(name, behind)| (PathBuf::from(name), behind)));
}
