use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ksi_local::{Error, Event, serve};
use tempfile::TempDir;

use crate::harness::model;

/// What `serve` says about a file with this content.
fn refused(content: &[u8]) -> (Error, Event) {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("bad.gguf");
    fs::write(&path, content).expect("a file");
    refused_file(&path)
}

fn refused_file(path: &Path) -> (Error, Event) {
    let mut output = Vec::new();
    let error = serve(path, &b""[..], &mut output).expect_err("this is not a model");
    (error, serde_json::from_slice(&output).expect("exactly one event"))
}

fn assert_unusable(content: &[u8], because: &str) {
    let (error, event) = refused(content);
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
    assert!(error.to_string().contains(because), "{error} should contain: {because}");
    let Event::Failed { id: None, error } = event else { panic!("{event:?}") };
    assert_eq!(error.code, "model_unusable");
}

/// A header with these counts and this behind it.
fn header(tensors: u64, values: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(values.to_le_bytes());
    bytes.extend(rest);
    bytes
}

/// One metadata entry of this kind.
fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = (key.len() as u64).to_le_bytes().to_vec();
    bytes.extend(key.as_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(value);
    bytes
}

fn list(kind: u32, count: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes
}

#[test]
fn a_file_that_is_not_there_is_an_error_that_names_it() {
    let (error, event) = refused_file(Path::new("/nowhere/model.gguf"));
    assert!(matches!(error, Error::Open { .. }));
    assert!(error.to_string().contains("/nowhere/model.gguf"));
    let Event::Failed { error, .. } = event else { panic!("{event:?}") };
    assert_eq!(error.code, "model_not_found");
}

#[test]
fn a_folder_is_not_a_model() {
    let folder = TempDir::new().unwrap();
    let (error, _) = refused_file(folder.path());
    assert!(matches!(error, Error::Unusable { .. } | Error::Open { .. }), "{error}");
}

#[test]
fn empty_and_foreign_files_are_refused() {
    assert_unusable(b"", "too early");
    assert_unusable(b"GG", "too early");
    assert_unusable(&[0x5a; 4096], "not a GGUF file");
    assert_unusable(b"GGUF\x01\0\0\0", "version 1");
}

#[test]
fn random_bytes_behind_a_good_beginning_are_refused() {
    let mut state = 88_172_645_463_325_252_u64;
    for _ in 0..200 {
        let noise: Vec<u8> = (0..600)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect();
        assert_unusable(&header(3, 5, &noise), "");
    }
}

#[test]
fn sizes_that_the_file_cannot_hold_are_refused_before_memory_is_asked_for() {
    let huge = u64::MAX;
    assert_unusable(&header(huge, 1, &[0; 64]), "more than it can hold");
    assert_unusable(&header(1, huge, &[0; 64]), "more than it can hold");
    assert_unusable(&header(0, 1, &[&huge.to_le_bytes()[..], &[0; 64]].concat()), "too early");
    for kind in [0, 5, 8, 9, 12] {
        let value = [list(kind, huge / 2), vec![0; 64]].concat();
        assert_unusable(&header(0, 1, &entry("k", 9, &value)), "more than it can hold");
    }
}

#[test]
fn lists_in_lists_in_lists_are_refused() {
    let nested = [list(9, 1).repeat(100), vec![0; 64]].concat();
    assert_unusable(&header(0, 1, &entry("k", 9, &nested)), "nested too deep");
}

#[test]
fn an_alignment_of_nothing_is_refused() {
    let value = entry("general.alignment", 4, &0_u32.to_le_bytes());
    assert_unusable(&header(0, 1, &value), "alignment");
}

#[test]
fn tensors_whose_size_overflows_or_lies_outside_are_refused() {
    let tensor = |dims: &[u64], offset: u64| {
        let mut bytes = 1_u64.to_le_bytes().to_vec();
        bytes.push(b't');
        bytes.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        header(1, 0, &bytes)
    };
    assert_unusable(&tensor(&[u64::MAX, 2], 0), "too large");
    assert_unusable(&tensor(&[1 << 62], 0), "too large");
    assert_unusable(&tensor(&[1 << 40], 0), "before the end of the tensor");
    assert_unusable(&tensor(&[4], u64::MAX), "before the end of the tensor");
}

#[test]
fn a_model_of_another_kind_is_refused() {
    let name = [&4_u64.to_le_bytes()[..], b"bert"].concat();
    assert_unusable(&header(0, 1, &entry("tokenizer.ggml.model", 8, &name)), "bert");
}

#[test]
fn the_model_cut_off_anywhere_is_refused() {
    let whole = fs::metadata(model()).unwrap().len();
    let folder = TempDir::new().unwrap();
    for kept in [30, 1000, 900_000, 1_785_664, whole / 2, whole - 1] {
        let path = beginning(folder.path(), kept);
        let (error, _) = refused_file(&path);
        assert!(matches!(error, Error::Unusable { .. }), "{kept}: {error}");
    }
}

#[test]
fn damaged_metadata_of_the_model_never_panics() {
    let folder = TempDir::new().unwrap();
    let path = beginning(folder.path(), 1_785_664);
    let mut file = File::options().write(true).open(&path).unwrap();
    for at in (8..1400).step_by(7) {
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[0xFF]).unwrap();
        let (error, _) = refused_file(&path);
        assert!(matches!(error, Error::Unusable { .. }), "{at}: {error}");
    }
}

/// A copy of the first bytes of the model.
fn beginning(folder: &Path, bytes: u64) -> PathBuf {
    let path = folder.join("beginning.gguf");
    let mut source = File::open(model()).expect("the model").take(bytes);
    std::io::copy(&mut source, &mut File::create(&path).expect("a file")).expect("a copy");
    path
}
