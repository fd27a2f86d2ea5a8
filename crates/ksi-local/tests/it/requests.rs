use ksi_local::{Event, Request, Role};

use crate::harness::{Session, ask, message, request, run};

fn question() -> Request {
    request(vec![message(Role::User, "What is a cat?")])
}

#[test]
fn ready_comes_first_with_the_models_name_and_the_end_of_the_input_ends_the_loop() {
    let events = run(b"");
    let [Event::Ready { ready }] = events.as_slice() else { panic!("{events:?}") };
    assert!(!ready.model.is_empty() && !ready.model.ends_with(".gguf"), "{}", ready.model);
}

#[test]
fn a_malformed_line_is_answered_with_an_error_and_the_loop_goes_on() {
    let mut session = Session::start();
    for line in ["{", "[]", "\u{0}", r#"{"id":"x"}"#, "{}{}"] {
        assert_eq!(session.ask_line(line).error().code, "bad_request", "{line}");
    }
    assert!(!session.ask(&question()).text().is_empty());
}

#[test]
fn an_error_names_the_request_where_its_id_could_be_read() {
    let events = run(b"{\"id\":\"r9\",\"messages\":7}\nnot json\n");
    let ids: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Failed { id, .. } => Some(id.as_deref()),
            _ => None,
        })
        .collect();
    assert_eq!(ids, [Some("r9"), None]);
}

#[test]
fn an_unknown_role_is_refused_with_the_roles_there_are() {
    let line = r#"{"id":"r1","messages":[{"role":"wizard","content":"hi"}]}"#;
    let reply = Session::start().ask_line(line);
    let message = &reply.error().message;
    assert!(message.contains("wizard") && message.contains("assistant"), "{message}");
}

#[test]
fn requests_without_a_turn_or_with_absurd_numbers_are_refused() {
    let mut absurd = question();
    absurd.sampling.temperature = -1.0;
    let mut forgetful = question();
    forgetful.sampling.repetition_penalty = 0.5;
    let requests = [
        request(vec![]),
        request(vec![message(Role::System, "You are kind.")]),
        Request { max_tokens: 0, ..question() },
        Request { max_tokens: 1_000_000, ..question() },
        absurd,
        forgetful,
    ];
    for reply in ask(&requests) {
        assert_eq!(reply.error().code, "bad_request");
        assert!(reply.pieces.is_empty());
    }
}

#[test]
fn only_id_and_messages_must_be_there() {
    let line = r#"{"id":"r1","messages":[{"role":"user","content":"Say hello."}]}"#;
    let reply = Session::start().ask_line(line);
    assert!(!reply.text().is_empty());
    assert!(reply.done().usage.output <= 120);
}

#[test]
fn a_turn_longer_than_the_context_is_refused() {
    let reply = &ask(&[request(vec![message(Role::User, &"word ".repeat(9000))])])[0];
    assert_eq!(reply.error().code, "too_long");
    let said = &reply.error().message;
    assert!(said.starts_with("the prompt is too long for this model: "), "{said}");
}

#[test]
fn a_request_of_more_than_a_megabyte_is_too_long_as_well() {
    let reply = &ask(&[request(vec![message(Role::User, &"word ".repeat(300_000))])])[0];
    assert_eq!(reply.error().code, "too_long");
}

#[test]
fn the_oldest_turns_go_when_they_do_not_fit() {
    let long = "1 2 3 4 5 ".repeat(900);
    let messages = vec![
        message(Role::System, "Answer in one sentence."),
        message(Role::User, &long),
        message(Role::Assistant, "These are numbers."),
        message(Role::User, &"cats and dogs ".repeat(20)),
    ];
    let reply = &ask(&[request(messages)])[0];
    assert_eq!(reply.done().dropped, 1);
    assert!(reply.done().usage.input < 200);
}

#[test]
fn a_text_of_hundreds_of_kilobytes_is_refused_at_once() {
    let long = ["a1".repeat(150_000), "ab ".repeat(100_000)];
    let requests: Vec<_> =
        long.iter().map(|text| request(vec![message(Role::User, text)])).collect();
    for reply in ask(&requests) {
        assert!(["too_long", "bad_request"].contains(&reply.error().code.as_str()));
    }
}

#[test]
fn text_that_is_hard_to_split_is_answered_or_refused_in_words() {
    let hard = [" ".repeat(2_000), "a".repeat(2_000), "\u{fffd}\u{1f980}\n\t".repeat(50)];
    let requests: Vec<_> =
        hard.iter().map(|text| request(vec![message(Role::User, text)])).collect();
    for reply in ask(&requests) {
        match reply.end {
            Ok(_) => assert!(!reply.text().trim().is_empty()),
            Err(failure) => assert!(!failure.message.is_empty()),
        }
    }
}
