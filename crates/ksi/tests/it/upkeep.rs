//! Snapshots, backups and the journal's upkeep, through the program.

use serde_json::{Value, json};

use crate::daemon::Home;

fn set(home: &Home, key: &str, value: &str) {
    home.ok(&["emit", "state:set", &format!("key={key}"), &format!("value={value}")]);
}

fn value_of(home: &Home, key: &str) -> Value {
    home.json(&["emit", "state:get", &format!("key={key}")])["value"].clone()
}

#[test]
fn a_snapshot_is_made_when_asked_and_at_the_end_and_the_next_start_begins_there() {
    let home = Home::new();
    set(&home, "a", "1");
    assert_eq!(home.json(&["checkpoint", "save", "-o", "json"])["seq"], 1);
    set(&home, "a", "2");
    assert_eq!(home.json(&["checkpoint", "status", "-o", "json"])["behind"], 1);
    home.ok(&["stop"]);
    home.ok(&["start"]);
    let status = home.json(&["checkpoint", "status", "-o", "json"]);
    assert_eq!(status, json!({ "snapshot_seq": 2, "durable_seq": 2, "behind": 0 }));
    assert_eq!(value_of(&home, "a"), 2);
    let listed = home.ok(&["checkpoint", "list"]);
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(listed.lines().next().unwrap().contains("up to fact 2"), "{listed}");
}

#[test]
fn a_backup_is_made_while_the_daemon_runs_and_restored_where_none_does() {
    let (home, other) = (Home::new(), Home::new());
    set(&home, "a", "1");
    home.ok(&["checkpoint", "save"]);
    set(&home, "a", "2");
    let file = home.path().join("backup.ksi");
    let file = file.to_str().unwrap();
    let said = home.json(&["backup", file, "-o", "json"]);
    assert_eq!((&said["status"], &said["seq"]), (&json!("saved"), &json!(2)));
    let again = home.ksi(&["backup", file]);
    let told = String::from_utf8(again.stderr).unwrap();
    assert!(told.contains("is there already; nothing was changed"), "{told}");
    set(&home, "a", "3");

    other.ok(&["restore", file]);
    assert_eq!(value_of(&other, "a"), 2);
    assert_eq!(other.json(&["checkpoint", "list", "-o", "json"])["snapshots"][0]["seq"], 1);
    set(&other, "b", "4");
    let refused = other.ksi(&["restore", file]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(told.contains("hint: `ksi stop` first: nothing was changed"), "{told}");
    other.ok(&["stop"]);
    let refused = other.ksi(&["restore", file]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("is there already") && told.contains("--replace"), "{told}");
    let said = other.ok(&["restore", file, "--replace"]);
    assert!(said.contains("before-1.db"), "{said}");
    assert_eq!((value_of(&other, "a"), value_of(&other, "b")), (json!(2), Value::Null));
}

#[test]
fn what_is_no_backup_is_refused_and_what_was_there_stays() {
    let home = Home::new();
    set(&home, "a", "1");
    let file = home.path().join("backup.ksi");
    let path = file.to_str().unwrap();
    home.ok(&["backup", path]);
    home.ok(&["stop"]);
    let good = std::fs::read(&file).unwrap();
    let mut changed = good.clone();
    let at = good.windows(9).position(|bytes| bytes == b"\"value\":1").unwrap();
    changed[at + 8] = b'7';
    let cut = good[..good.len() - 1_000].to_vec();
    for bytes in [b"no journal at all".to_vec(), Vec::new(), changed, cut] {
        std::fs::write(&file, bytes).unwrap();
        let refused = home.ksi(&["restore", path, "--replace"]);
        let told = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains("was not restored"), "{told}");
        assert!(!told.contains("ksi restore FILE"), "as if this were no restore: {told}");
        assert_eq!(value_of(&home, "a"), 1);
        home.ok(&["stop"]);
    }
}

#[test]
fn the_journal_tells_its_size_verifies_and_is_compacted() {
    let home = Home::new();
    set(&home, "a", "1");
    let stats = home.json(&["journal", "stats", "-o", "json"]);
    assert_eq!(
        (&stats["facts"], &stats["first_seq"], &stats["last_seq"]),
        (&json!(1), &json!(1), &json!(1))
    );
    assert_eq!(home.ok(&["journal", "verify"]), "every fact up to 1 is what was written\n");
    assert!(home.ok(&["journal", "compact"]).contains(" instead of "));
    set(&home, "a", "2");
    assert_eq!(home.json(&["journal", "verify", "-o", "json"])["seq"], 2);
}

#[test]
fn a_backup_that_cannot_be_written_names_the_file_that_was_asked_for() {
    let home = Home::new();
    let missing = home.path().join("nowhere/backup.ksi");
    let refused = home.ksi(&["backup", missing.to_str().unwrap()]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{told}");
    let why = format!("{} cannot be written or read: No such file", missing.display());
    assert!(told.contains(&why) && !told.contains("at path"), "{told}");
}

#[test]
fn a_backup_that_is_not_there_is_said_before_anything_is_touched() {
    let home = Home::new();
    home.ok(&["emit", "state:set", "key=a", "value=1"]);
    home.ok(&["stop"]);
    for replace in [&[][..], &["--replace"]] {
        let refused = home.ksi(&[&["restore", "/no/such/file"], replace].concat());
        let told = String::from_utf8(refused.stderr).unwrap();
        assert!(told.starts_with("error: /no/such/file cannot be read: "), "{told}");
        assert!(told.ends_with("hint: nothing was changed\n"), "{told}");
    }
    assert_eq!(home.json(&["emit", "state:get", "key=a"])["value"], 1);
}
