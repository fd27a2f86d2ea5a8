//! Input that no client of ours would send; each gets its answer, and the connection lives.

use serde_json::{Value, json};

use crate::daemon::{TestServer, Wire};

async fn code(wire: &mut Wire) -> String {
    wire.next().await["error"]["code"].as_str().expect("an error").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_more_than_64_kib_is_answered() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    let text = "x".repeat(200_000);
    assert_eq!(wire.data("test:echo", json!({ "text": text })).await["text"], text.as_str());
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_ten_megabytes_is_too_large_and_the_next_is_answered() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    let mut line = vec![b'x'; 10_000_000];
    line.push(b'\n');
    for _ in 0..2 {
        wire.send_bytes(&line).await;
        let answer = wire.next().await;
        assert_eq!(answer["error"]["code"], "too_large");
        assert!(
            answer["error"]["message"].as_str().unwrap().contains("10000000 bytes"),
            "{answer}"
        );
        wire.is_alive().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_object_or_no_utf8_is_bad_json() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    let lines: [&[u8]; 8] = [
        b"[1,2]",
        b"7",
        b"\"text\"",
        b"null",
        b"nonsense",
        b"{\"event\":",
        b"\xff\xfe\x00",
        b"{\"event\":\"test:echo\",\"data\":{\"k\":\"\xc3\x28\"}}",
    ];
    for line in lines {
        wire.send_bytes(&[line, b"\n"].concat()).await;
        assert_eq!(code(&mut wire).await, "bad_json", "{}", line.escape_ascii());
    }
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_brackets_are_bad_json() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
    let inside =
        format!(r#"{{"event":"test:echo","correlation_id":"c","data":{{"k":{open}{close}}}}}"#);
    for line in [open, inside] {
        wire.send_bytes(format!("{line}\n").as_bytes()).await;
        assert_eq!(code(&mut wire).await, "bad_json");
    }
    wire.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_line_is_answered_with_what_could_be_read_of_it() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    wire.send_bytes(b"{\"event\":\"test:echo\",\"correlation_id\":\"c\",\"data\":[1]}\n").await;
    let answer = wire.next().await;
    assert_eq!(answer["error"]["code"], "bad_params");
    assert_eq!((&answer["event"], &answer["correlation_id"]), (&json!("test:echo"), &json!("c")));
    wire.send_bytes(b"{{{\n").await;
    let answer = wire.next().await;
    assert_eq!((&answer["event"], &answer["correlation_id"]), (&Value::Null, &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_lines_returns_and_unknown_keys_are_no_matter() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    wire.send_bytes(b"\n\r\n   \n{\"event\":\"test:echo\",\"data\":null,\"new\":[1]}\r\n").await;
    assert_eq!(wire.next().await["data"], json!({}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_byte_by_byte_is_answered() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    for byte in b"{\"event\":\"test:echo\",\"data\":{\"n\":1}}\n" {
        wire.send_bytes(&[*byte]).await;
    }
    assert_eq!(wire.next().await["data"], json!({ "n": 1 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_line_and_a_close_harm_nobody() {
    let server = TestServer::start();
    let before = server.kernel.tasks().count();
    let mut wire = server.connect().await;
    wire.send_bytes(b"{\"event\":\"test:ec").await;
    drop(wire);
    server.until_tasks(before).await;
    server.connect().await.is_alive().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_line_and_a_half_close_is_answered_as_bad_json() {
    let server = TestServer::start();
    let mut wire = server.connect().await;
    wire.send_bytes(b"{\"event\":\"test:ec").await;
    wire.end_input();
    assert_eq!(code(&mut wire).await, "bad_json");
    assert!(wire.line().await.is_none());
}
