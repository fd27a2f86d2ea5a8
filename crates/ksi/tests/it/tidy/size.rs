//! How long things may be.

use std::path::Path;

use super::files::{files_below, read, repository, shown};
use super::modules::{Module, tree};
use super::rust::RustFile;

const CORE_LIMIT: usize = 600;
const FILE_LIMIT: usize = 500;
const WIDTH: usize = 100;

/// What a build for users has off: these lines do not count as the kernel's.
pub(super) const TEST_SWITCHES: [&str; 2] = ["test", "testing"];

/// What counts as the kernel's wherever it lives: the owner of tasks.
const KERNEL_ELSEWHERE: [&str; 1] = ["ksi-runtime/src/tasks.rs"];

#[test]
fn kernel_has_at_most_600_code_lines() {
    assert_small("ksi-kernel", &KERNEL_ELSEWHERE);
}

#[test]
fn state_has_at_most_600_code_lines() {
    assert_small("ksi-state", &[]);
}

#[test]
fn every_file_has_at_most_500_code_lines() {
    let counts = files_below(&repository()).into_iter().filter_map(|path| {
        let lines = code_lines_of_file(&path)?;
        (lines > FILE_LIMIT).then(|| format!("{}: {lines}", shown(&path)))
    });
    let long: Vec<_> = counts.collect();
    assert!(long.is_empty(), "over {FILE_LIMIT} code lines:\n{}", long.join("\n"));
}

fn assert_small(name: &str, elsewhere: &[&str]) {
    let crates = repository().join("crates");
    let mut modules = tree(&crates.join(name).join("src/lib.rs"), &TEST_SWITCHES);
    modules.extend(elsewhere.iter().flat_map(|file| tree(&crates.join(file), &TEST_SWITCHES)));
    let shipped: Vec<_> = modules.iter().filter(|module| !module.behind).collect();
    let counts: Vec<_> = shipped.iter().map(|module| (shipped_lines(module), module)).collect();
    let total: usize = counts.iter().map(|(lines, _)| lines).sum();
    let table: Vec<_> =
        counts.iter().map(|(lines, module)| format!("{lines:5} {}", shown(&module.path))).collect();
    assert!(total > 0, "{name} has no code: the count cannot be right");
    assert!(total <= CORE_LIMIT, "{name}: {total} > {CORE_LIMIT}\n{}", table.join("\n"));

    let dodges: Vec<_> = shipped.iter().flat_map(|module| dodges(module)).collect();
    assert!(dodges.is_empty(), "these make a line count for less:\n{}", dodges.join("\n"));
    let rules: toml::Table = read(&repository().join("rustfmt.toml")).parse().expect("valid TOML");
    assert_eq!(rules["max_width"].as_integer(), Some(WIDTH as i64));
}

fn shipped_lines(module: &Module) -> usize {
    let rust = &module.rust;
    rust.code_lines().difference(&rust.lines_behind(&TEST_SWITCHES)).count()
}

/// Ways to fit more code into a line: overlong lines, unformatted code, macros of our own.
fn dodges(module: &Module) -> Vec<String> {
    let text = read(&module.path);
    let long = text.lines().enumerate().filter(|(_, line)| line.chars().count() > WIDTH);
    let mut dodges: Vec<_> = long
        .map(|(index, _)| format!("{}:{}: over {WIDTH} columns", shown(&module.path), index + 1))
        .collect();
    let behind = module.rust.lines_behind(&TEST_SWITCHES);
    let words = module.rust.tokens.iter().filter(|token| !behind.contains(&token.first));
    let macros = words.filter(|token| ["macro_rules", "rustfmt"].contains(&token.text.as_str()));
    dodges.extend(
        macros.map(|token| format!("{}:{}: {}", shown(&module.path), token.first, token.text)),
    );
    dodges
}

/// The code lines of a Rust, Python or shell file; `None` for anything else.
fn code_lines_of_file(path: &Path) -> Option<usize> {
    let extension = path.extension().unwrap_or_default();
    if extension == "rs" {
        let rust = super::modules::parse(path);
        return Some(rust.code_lines().difference(&rust.lines_behind(&["test"])).count());
    }
    // Programs without an extension, such as `.ci/run`, say in their first line what they are.
    let text = std::fs::read_to_string(path).ok()?;
    let program = extension == "py" || extension == "sh" || text.starts_with("#!");
    program.then(|| text.lines().filter(|line| is_code_of_script(line)).count())
}

fn is_code_of_script(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

fn shipped(text: &str) -> usize {
    let rust = RustFile::parse(text).expect("the sample is Rust");
    rust.code_lines().difference(&rust.lines_behind(&TEST_SWITCHES)).count()
}

#[test]
fn comments_documentation_and_blank_lines_do_not_count() {
    let text = r#"//! A crate.

/* a block
   fn not_code() {}
*/
/// Adds.
#[must_use] // an attribute is code
pub fn add(a: u32, b: u32) -> u32 {

    a + b // so is a line that ends in a comment
}
"#;
    assert_eq!(shipped(text), 4);
}

#[test]
fn a_comment_inside_a_string_counts_and_its_blank_line_does_not() {
    assert_eq!(shipped("const A: &str = \"\n// text\n\n/* text */\n\";\n"), 4);
}

#[test]
fn what_only_tests_compile_does_not_count() {
    let text = "fn kept() {}\n#[cfg(test)]\nmod tests {\n    fn a() {}\n}\n\
                #[cfg(any(test, feature = \"testing\"))]\npub mod memory {\n    fn b() {}\n}\n\
                #[cfg(all(unix, feature = \"testing\"))]\nuse memory::b;\n";
    assert_eq!(shipped(text), 1);
}

#[test]
fn what_users_compile_counts_whatever_its_condition() {
    let text = "#[cfg(not(test))]\nfn a() {}\n#[cfg(feature = \"local\")]\nfn b() {}\n\
                #[cfg(any(test, unix))]\nfn c() {}\n#[cfg_attr(test, derive(Debug))]\nstruct D;\n";
    assert_eq!(shipped(text), 8);
}

#[test]
fn a_condition_takes_out_only_what_bears_it() {
    let text = "struct A {\n    kept: u8,\n    #[cfg(test)]\n    seed: u64,\n}\n\
                fn f(a: A) {\n    #[cfg(feature = \"testing\")]\n    crash_point(\"before\");\n\
                match a.kept {\n        #[cfg(test)]\n        0 => panic!(),\n        _ => {}\n    }\n}\n";
    assert_eq!(shipped(text), 8);
}

#[test]
fn a_file_that_is_a_test_as_a_whole_does_not_count() {
    assert_eq!(shipped("#![cfg(test)]\nuse super::A;\nfn a() {}\n"), 0);
}

#[test]
fn a_script_counts_without_comments_and_blank_lines() {
    let lines = ["#!/bin/bash", "", "set -e  # stop", "   # why", "\techo"];
    assert_eq!(lines.iter().filter(|line| is_code_of_script(line)).count(), 2);
}
