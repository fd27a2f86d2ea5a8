//! What was typed cannot be: exit code 2, with what to type instead.

use std::process::Output;

use serde_json::{Value, json};

use crate::daemon::Home;

/// It is wrong usage, and says this.
fn is_wrong(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*output.stdout), (Some(2), &b""[..]), "{said}");
    for words in words {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
}

/// The JSON error of wrong usage.
fn json_error(home: &Home, args: &[&str]) -> Value {
    let output = home.ksi(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*output.stdout), (Some(2), &b""[..]), "{args:?}: {said}");
    let mut error: Value =
        serde_json::from_str(&said).unwrap_or_else(|why| panic!("{why}: {said}"));
    error["error"].take()
}

#[test]
fn what_has_no_such_name_cannot_be_discovered() {
    let home = Home::new();
    for (name, words) in [
        ("stat", ["there is no namespace `stat`", "hint: did you mean `state`?"]),
        ("nope-nope", ["there is no namespace `nope-nope`", "hint: there are: "]),
        ("state:sett", ["there is no event `state:sett`", "hint: did you mean `state:set`?"]),
        ("shop:opened", ["there is no event `shop:opened`", "hint: `ksi discover` lists"]),
    ] {
        is_wrong(&home.ksi(&["discover", name]), &words);
    }
    let error = json_error(&home, &["discover", "stat", "-o", "json"]);
    assert_eq!((&error["code"], &error["path"]), (&json!("not_found"), &json!("namespace")));
    assert_eq!(error["hint"], "did you mean `state`?");
}

#[test]
fn what_is_no_event_name_is_not_sent_and_not_listened_to() {
    let home = Home::new();
    for args in [["emit", "nonsense"], ["emit", "a b:c"], ["listen", "a*b"], ["listen", "nonsense"]]
    {
        is_wrong(&home.ksi(&args), &["error: ", "hint: "]);
        assert_eq!(json_error(&home, &[&args[..], &["-o", "json"]].concat())["code"], "bad_params");
    }
    assert!(!home.path().join("state").exists(), "no daemon was needed to see it");
}

#[test]
fn a_negative_number_is_an_error_about_its_option() {
    let home = Home::new();
    for args in [
        &["orchestrate", "x", "--rounds", "-1"][..],
        &["orchestrate", "x", "--rounds=two"],
        &["orchestrate", "x", "--seed", "-1"],
        &["listen", "*", "--since", "-1"],
    ] {
        let option = args[2].split('=').next().unwrap();
        let output = home.ksi(args);
        is_wrong(&output, &[option, "it must be a whole number"]);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("'-- -1'"));
    }
}

#[test]
fn data_that_is_no_object_is_named_for_what_it_is() {
    let home = Home::new();
    for (data, found) in [("[1]", "an array"), ("1", "a number"), ("null", "null")] {
        let output = home.ksi(&["emit", "state:set", data]);
        is_wrong(&output, &[&format!("the data must be a JSON object, not {found}"), "hint: ksi"]);
    }
}

#[test]
fn more_rounds_than_there_can_be_are_refused_with_how_many_there_can_be() {
    let home = Home::new();
    let (model, _) = home.script("rules: [{answers: [Tea.]}]\n");
    for rounds in ["0", "99999999999", "18446744073709551615"] {
        let args = ["orchestrate", "x", "--model", &model, "--rounds", rounds];
        is_wrong(&home.ksi(&args), &["there can be 1 to ", "at: rounds"]);
    }
}

#[test]
fn help_that_cannot_be_written_is_an_error() {
    let home = Home::new();
    for option in ["--help", "--version"] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = home.command(&[option]).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("error: stdout cannot be written"), "{said}");
    }
}

#[test]
fn with_json_a_wrong_command_line_is_a_json_error() {
    let home = Home::new();
    for (args, message, hint) in [
        (&["-o", "json", "orchestrate", "x", "--ruonds", "1"][..], "`--ruonds`", "`--rounds`"),
        (&["sstatus", "-ojson"], "`sstatus`", "`status`"),
        (&["listen", "--output=json"], "<PATTERNS>", "ksi listen"),
        (&["-o=json"], "a command is missing", "ksi --help"),
        (&["orchestrate", "x", "--rounds", "-1", "--output", "json"], "--rounds", "ksi --help"),
    ] {
        let error = json_error(&home, args);
        let text = |name: &str| error[name].as_str().unwrap_or_default().replace('\'', "`");
        assert_eq!(error["code"], "bad_params");
        assert!(text("message").contains(message) && text("hint").contains(hint), "{error}");
        assert!(
            !text("message").contains('\n') && !text("message").starts_with("error"),
            "{error}"
        );
    }
    is_wrong(&home.ksi(&["emit", "a:b", "--", "-o", "json", "--nope"]), &["error: "]);
}

#[test]
fn help_and_version_are_no_errors_also_with_json() {
    let home = Home::new();
    for args in [["--help", "-ojson"], ["--version", "-ojson"]] {
        assert!(home.ok(&args).contains("ksi"));
    }
}

#[test]
fn a_home_that_cannot_be_made_is_named_with_what_to_try() {
    let home = Home::new();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("home");
    for args in [&["start"][..], &["start", "--foreground"], &["emit", "system:health"]] {
        let output = home.command(args).env("KSI_HOME", &below).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        let named = format!("error: the folder {}/state cannot be made", below.display());
        assert!(said.contains(&named) && said.contains("Not a directory"), "{args:?}: {said}");
        assert!(said.contains("hint: set KSI_HOME to a folder that you can write"), "{said}");
    }
    let mut command = home.command(&["start", "-o", "json"]);
    let output = command.env("KSI_HOME", &below).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(said["error"]["hint"].as_str().unwrap().contains("KSI_HOME"), "{said}");
}

#[test]
fn a_state_folder_that_cannot_be_written_is_named_with_what_to_try() {
    let home = Home::new();
    // Not even root can make a file where a folder is.
    std::fs::create_dir_all(home.path().join("state/starting.lock")).unwrap();
    let output = home.ksi(&["start"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let file = home.path().join("state/starting.lock");
    assert!(said.contains(&format!("{} cannot be written", file.display())), "{said}");
    assert!(said.contains("hint: set KSI_HOME to a folder that you can write"), "{said}");
}

#[test]
fn what_is_said_twice_is_refused_and_not_chosen_from() {
    let home = Home::new();
    for (args, said) in [
        (&["emit", "state:set", "key=a", "key=b", "value=1"][..], "`key` is there twice"),
        (&["emit", "state:set", r#"{"key":"a","key":"b","value":1}"#], "duplicate field `key`"),
    ] {
        let refused = home.ksi(args);
        let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && stderr.contains(said), "{stderr}");
    }
    assert_eq!(home.json(&["emit", "state:get", "key=a"])["found"], false);
}

#[test]
fn a_value_that_had_to_be_a_text_is_told_how_to_be_one() {
    let home = Home::new();
    let refused = home.ksi(&["emit", "state:set", "key=1", "value=2"]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.ends_with("at: key\nhint: if it is to be a text: key='\"1\"'\n"), "{told}");
    home.ok(&["emit", "state:set", "key=\"1\"", "value=2"]);
    assert_eq!(home.json(&["emit", "state:get", "key=\"1\""])["value"], 2);
}
