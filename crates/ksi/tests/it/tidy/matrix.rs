//! `docs/failure-matrix.md`: each test that it names is there.

use std::path::{Path, PathBuf};

use super::files::{read, repository};

/// The fewest rows that the matrix can have without something having gone wrong.
const ROWS: usize = 60;

#[test]
fn every_test_in_the_failure_matrix_exists() {
    let text = read(&repository().join("docs/failure-matrix.md"));
    let rows: Vec<_> = text.lines().filter(|line| is_row(line)).collect();
    assert!(rows.len() >= ROWS, "only {} rows are read", rows.len());
    let unproved: Vec<_> = rows.iter().filter(|row| tests(row).is_empty()).collect();
    assert!(unproved.is_empty(), "no test is named in:\n{unproved:?}");
    let named = rows.iter().flat_map(|row| tests(row));
    let missing: Vec<_> = named.filter(|(package, test)| !exists(package, test)).collect();
    assert!(missing.is_empty(), "these tests are not there:\n{missing:#?}");
}

#[test]
fn a_test_that_is_not_there_is_noticed() {
    let own = "tidy::matrix::a_test_that_is_not_there_is_noticed";
    assert!(exists("ksi::it", own));
    assert!(!exists("ksi::it", "tidy::matrix::a_test_that_is_not_written"));
    assert!(!exists("ksi::it", "tidy::nowhere::a_test_that_is_not_there_is_noticed"));
    assert!(!exists("ksi", own) && !exists("ksi::it", "tidy::matrix::exists"));
    assert_eq!(tests("| a | b | c | `x::it a::b`, `y c::d` |"), [("x::it", "a::b"), ("y", "c::d")]);
}

/// Whether a line is a row of a table, and neither its head nor the line below that.
fn is_row(line: &str) -> bool {
    line.starts_with("| ") && !line.starts_with("| what fails")
}

/// The tests in a row's last cell: package, and path in it.
fn tests(row: &str) -> Vec<(&str, &str)> {
    let cell = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap_or_default();
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted.filter_map(|name| name.split_once(' ')).collect()
}

fn exists(package: &str, test: &str) -> bool {
    let (package, is_integration) = match package.strip_suffix("::it") {
        Some(package) => (package, true),
        None => (package, false),
    };
    let Some((module, name)) = test.rsplit_once("::") else { return false };
    let root = repository().join("crates").join(package);
    let root = root.join(if is_integration { "tests/it" } else { "src" });
    files_of(&root, module.strip_suffix("::tests").unwrap_or(module))
        .iter()
        .filter(|file| file.is_file())
        .any(|file| is_test(&read(file), name))
}

/// Where a module may lie.
fn files_of(root: &Path, module: &str) -> [PathBuf; 3] {
    let path = root.join(module.replace("::", "/"));
    [path.with_extension("rs"), path.join("mod.rs"), path.join("tests.rs")]
}

fn is_test(text: &str, name: &str) -> bool {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let is_it = |line: &str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ").is_some_and(|rest| rest.starts_with(&format!("{name}(")))
    };
    let found = lines.iter().position(|line| is_it(line));
    // Its attribute stands right above, but for others.
    let attributes = found.map(|at| lines[..at].iter().rev().take_while(|l| l.starts_with("#[")));
    attributes.is_some_and(|mut above| above.any(|line| line.contains("test")))
}
