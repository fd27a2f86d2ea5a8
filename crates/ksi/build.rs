//! Hands the processor features of this build to the compile, for the check at start.

use std::env;

fn main() {
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    println!("cargo::rustc-env=KSI_COMPILED_CPU_FEATURES={features}");
    println!("cargo::rerun-if-changed=build.rs");
}
