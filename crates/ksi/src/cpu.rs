//! The check that this processor has what the program was compiled for.
//!
//! `is_x86_feature_detected!` cannot do it: it is folded to `true` for every feature the build
//! enables. So this reads what the kernel says, before anything else runs.

use std::fs;

/// The features this build uses, as rustc names them, separated by commas.
const COMPILED: &str = env!("KSI_COMPILED_CPU_FEATURES");

/// Names that /proc/cpuinfo spells differently from rustc, as (rustc, cpuinfo).
const SPELLED_DIFFERENTLY: &[(&str, &str)] = &[
    ("avx512bf16", "avx512_bf16"),
    ("avx512bitalg", "avx512_bitalg"),
    ("avx512fp16", "avx512_fp16"),
    ("avx512vbmi2", "avx512_vbmi2"),
    ("avx512vnni", "avx512_vnni"),
    ("avx512vp2intersect", "avx512_vp2intersect"),
    ("avx512vpopcntdq", "avx512_vpopcntdq"),
    ("avxvnni", "avx_vnni"),
    ("amx-bf16", "amx_bf16"),
    ("amx-fp16", "amx_fp16"),
    ("amx-int8", "amx_int8"),
    ("amx-tile", "amx_tile"),
    ("cmpxchg16b", "cx16"),
    ("lahfsahf", "lahf_lm"),
    ("lzcnt", "abm"),
    ("sha", "sha_ni"),
    ("sse3", "pni"),
    ("sse4.1", "sse4_1"),
    ("sse4.2", "sse4_2"),
];

/// Names that both sides spell alike; a name in neither list is skipped, not guessed.
const SPELLED_ALIKE: &[&str] = &[
    "adx",
    "aes",
    "avx",
    "avx2",
    "avx512bw",
    "avx512cd",
    "avx512dq",
    "avx512f",
    "avx512ifma",
    "avx512vbmi",
    "avx512vl",
    "bmi1",
    "bmi2",
    "f16c",
    "fma",
    "fma4",
    "fxsr",
    "gfni",
    "movbe",
    "pclmulqdq",
    "popcnt",
    "rdrand",
    "rdseed",
    "sse",
    "sse2",
    "sse4a",
    "ssse3",
    "tbm",
    "vaes",
    "vpclmulqdq",
    "xop",
    "xsave",
    "xsavec",
    "xsaveopt",
    "xsaves",
];

/// The processor features this build needs and the running processor lacks, by rustc's names.
///
/// Empty on systems other than Linux on x86-64, and where /proc/cpuinfo cannot be read.
pub(crate) fn missing_features() -> Vec<String> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Vec::new();
    }
    let Ok(cpuinfo) = fs::read_to_string("/proc/cpuinfo") else { return Vec::new() };
    missing(&cpuinfo, COMPILED)
}

/// The compiled features that no `flags` line of this cpuinfo text names.
fn missing(cpuinfo: &str, compiled: &str) -> Vec<String> {
    let Some(flags) = cpuinfo.lines().find_map(flags_of) else { return Vec::new() };
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    compiled
        .split(',')
        .filter(|feature| kernel_name(feature).is_some_and(|name| !has(name)))
        .map(str::to_owned)
        .collect()
}

fn flags_of(line: &str) -> Option<&str> {
    let (key, flags) = line.split_once(':')?;
    (key.trim() == "flags").then_some(flags)
}

fn kernel_name(feature: &str) -> Option<&str> {
    let differently = SPELLED_DIFFERENTLY.iter().find(|(rustc, _)| *rustc == feature);
    if let Some((_, kernel)) = differently {
        return Some(kernel);
    }
    SPELLED_ALIKE.contains(&feature).then_some(feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str =
        "processor\t: 0\nmodel name\t: Old\nflags\t\t: fpu sse sse2 pni ssse3\nbugs\t\t: avx2\n";

    #[test]
    fn a_feature_without_its_flag_is_missing() {
        assert_eq!(missing(OLD, "sse,sse2,avx2,fma"), ["avx2", "fma"]);
    }

    #[test]
    fn names_are_translated_to_the_kernels_spelling() {
        let flags = "flags : pni sse4_1 sse4_2 abm cx16 sha_ni avx512_vnni avx_vnni lahf_lm\n";
        let compiled = "sse3,sse4.1,sse4.2,lzcnt,cmpxchg16b,sha,avx512vnni,avxvnni,lahfsahf";
        assert_eq!(missing(flags, compiled), Vec::<String>::new());
        assert_eq!(missing(OLD, "sse3,sse4.2,lzcnt"), ["sse4.2", "lzcnt"]);
    }

    #[test]
    fn a_flag_that_only_begins_alike_does_not_count() {
        assert_eq!(missing("flags : avx512f avx2x\n", "avx,avx2"), ["avx", "avx2"]);
    }

    #[test]
    fn unknown_names_are_skipped() {
        assert_eq!(missing(OLD, "x87,crt-static,ermsb,"), Vec::<String>::new());
    }

    #[test]
    fn without_a_flags_line_nothing_is_claimed() {
        assert_eq!(missing("Features : fp asimd\n", "avx2"), Vec::<String>::new());
        assert_eq!(missing("", "avx2"), Vec::<String>::new());
    }

    #[test]
    fn the_machine_that_runs_this_has_what_it_was_compiled_for() {
        assert_eq!(missing_features(), Vec::<String>::new());
        assert!(!COMPILED.is_empty());
    }
}
