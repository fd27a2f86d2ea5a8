//! Tests are all run, and none waits for time to pass.

use std::collections::BTreeSet;

use super::files::{crates, files_with_extension, read, repository, shown};
use super::modules::{parse, roots, tree};
use super::rust::{RustFile, Token};

const SLEEPS: [&str; 3] = ["sleep", "sleep_ms", "sleep_until"];

#[test]
fn no_test_file_is_forgotten() {
    let mut forgotten = Vec::new();
    for package in crates() {
        let trees = roots(&package).into_iter().flat_map(|root| tree(&root, &[]));
        let reached: BTreeSet<_> = trees.map(|module| module.path).collect();
        let files = files_with_extension(&package, "rs").into_iter();
        forgotten.extend(files.filter(|file| !reached.contains(file)).map(|file| shown(&file)));
    }
    assert!(forgotten.is_empty(), "no `mod` leads to:\n{}", forgotten.join("\n"));
}

#[test]
fn no_test_is_ignored_or_sleeps() {
    let mut found = Vec::new();
    for package in crates() {
        for path in files_with_extension(&package, "rs") {
            let rust = parse(&path);
            let all = path.starts_with(package.join("tests"));
            let mut lines = lines_that_ignore(&rust.tokens);
            lines.extend(lines_with_ignored_examples(&read(&path)));
            lines.extend(lines_that_sleep(&rust, all));
            found.extend(lines.iter().map(|line| format!("{}:{line}", shown(&path))));
        }
    }
    let python = files_with_extension(&repository().join("python"), "py").into_iter();
    for path in python.filter(|path| shown(path).contains("test")) {
        let text = read(&path);
        let sleeping = text.lines().zip(1..).filter(|(line, _)| line.contains("sleep("));
        found.extend(sleeping.map(|(_, line)| format!("{}:{line}", shown(&path))));
    }
    assert!(found.is_empty(), "ignored, or sleeping:\n{}", found.join("\n"));
}

/// Lines with `#[ignore]`, also by `cfg_attr` and inside macros.
fn lines_that_ignore(tokens: &[Token]) -> Vec<usize> {
    let opens = tokens.windows(3).enumerate().filter(|(_, three)| {
        let [sign, bracket, name] = three else { return false };
        sign.text == "#" && bracket.text == "[" && ["ignore", "cfg_attr"].contains(&&*name.text)
    });
    let ignoring = opens.filter(|(start, _)| {
        let mut attribute = tokens[*start..].iter().take_while(|token| token.text != "]");
        attribute.any(|token| token.text == "ignore")
    });
    ignoring.map(|(start, _)| tokens[start].first).collect()
}

/// Lines of documentation that open an example which is never compiled.
fn lines_with_ignored_examples(text: &str) -> Vec<usize> {
    let examples = text.lines().zip(1..).filter(|(line, _)| {
        let comment = line.trim().trim_start_matches(['/', '!']).trim();
        comment.strip_prefix("```").is_some_and(|kind| kind.split(',').any(|k| k == "ignore"))
    });
    examples.map(|(_, line)| line).collect()
}

/// Lines that call a sleep, in tests only unless the whole file is one.
fn lines_that_sleep(rust: &RustFile, all: bool) -> Vec<usize> {
    let tests = rust.lines_behind(&["test"]);
    let calls = rust.tokens.windows(2).filter(|two| {
        SLEEPS.contains(&two[0].text.as_str()) && ["(", ":"].contains(&two[1].text.as_str())
    });
    let lines = calls.map(|two| two[0].first);
    lines.filter(|line| all || tests.contains(line)).collect()
}

#[test]
fn an_ignored_or_sleeping_test_is_found() {
    let parse = |text| RustFile::parse(text).expect("the sample is Rust");
    let ignored = "#[test]\n#[ignore = \"slow\"]\nfn a() {}\n#[cfg_attr(unix, ignore)]\nfn b() {}\n\
                   #[serde(ignore)]\nstruct C;\nproptest! {\n    #[ignore]\n    fn d() {}\n}\n";
    assert_eq!(lines_that_ignore(&parse(ignored).tokens), [2, 4, 9]);
    let examples = "/// ```ignore\n/// ```rust,ignore\n/// ```no_run\n//! ```\n// ignore\n";
    assert_eq!(lines_with_ignored_examples(examples), [1, 2]);

    let sleeping = "fn a() {\n    sleep(x);\n}\n#[cfg(test)]\nmod tests {\n    fn b() {\n        \
                    // sleep(x)\n        tokio::time::sleep(x).await;\n    }\n}\n";
    assert_eq!(lines_that_sleep(&parse(sleeping), false), [8]);
    assert_eq!(lines_that_sleep(&parse(sleeping), true), [2, 8]);
}
