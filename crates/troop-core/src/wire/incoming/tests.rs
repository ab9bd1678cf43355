use super::*;

#[test]
fn null_may_come_with_a_handle() {
    let line = br#"{"cmd":"NODE_HANDLE","type":"net.Server","msg":null}"#;
    assert!(matches!(parse(line), Ok(Incoming::Handle(Wrapped { body: b"null", .. }))));
}

#[test]
fn the_captured_messages_of_node_are_understood() {
    let line = br#"{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":18080,"addressType":4,"backlog":0,"seq":1}"#;
    let Ok(Incoming::Cluster(m)) = parse(line) else { panic!() };
    assert_eq!(
        (m.act, m.port, m.address_type, m.fd, m.seq),
        (Some(Act::QueryServer), Some(18080), Some(AddressType::Tcp4), None, Some(1))
    );
    let line = br#"{"cmd":"NODE_CLUSTER","act":"listening","index":0,"data":null,"address":"0.0.0.0","port":9,"addressType":"udp4","fd":-1,"flags":0,"seq":2}"#;
    let Ok(Incoming::Cluster(m)) = parse(line) else { panic!() };
    assert_eq!(
        (m.act, m.address_type, m.fd),
        (Some(Act::Listening), Some(AddressType::Udp4), Some(-1))
    );
    let line = br#"{"cmd":"NODE_CLUSTER","ack":1,"accepted":true,"seq":3}"#;
    assert!(matches!(parse(line), Ok(Incoming::Answer { ack: 1, accepted: true })));
    let line = br#"{"accepted":false,"cmd":"NODE_CLUSTER","seq":3,"ack":1}"#;
    let Ok(Incoming::Cluster(m)) = parse(line) else { panic!() };
    assert_eq!((m.ack, m.accepted), (Some(1), Some(false)));
}

#[test]
fn a_message_wrapped_twice_is_unwrapped_to_its_core() {
    let line =
        br#"{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_HANDLE","type":"net.Socket","key":"6::::0","msg":"hi"}}"#;
    let Ok(Incoming::Handle(w)) = parse(line) else { panic!() };
    assert_eq!(
        (&*w.kind, w.key.as_deref(), w.body),
        ("net.Socket", Some("6::::0"), &b"\"hi\""[..])
    );
}

#[test]
fn user_messages_are_any_json() {
    for line in [
        "\"str\"",
        "42",
        "true",
        "null",
        "{\"cmd\":\"NODE_\"}",
        "{\"cmd\":7}",
        "{\"a\":{\"cmd\":\"NODE_CLUSTER\"}}",
        " [1] ",
    ] {
        assert!(matches!(parse(line.as_bytes()), Ok(Incoming::User(_))), "{line}");
    }
}

#[test]
fn acknowledgements_of_troop_workers_parse_in_any_form() {
    let cases = [
        (r#""taken":[7]"#, vec![7], vec![], None),
        (
            r#""taken":[7,0,123456789012345678],"open":3"#,
            vec![7, 0, 123_456_789_012_345_678],
            vec![],
            Some(3),
        ),
        (r#""taken":[7,18446744073709551615]"#, vec![7, u64::MAX], vec![], None),
        (r#""taken":[],"returned":[9,10],"open":0"#, vec![], vec![9, 10], Some(0)),
        (r#" "open" : 1, "taken" : [ 4, 5 ]"#, vec![4, 5], vec![], Some(1)),
    ];
    for (fields, expected, given_back, number) in cases {
        let line = format!(r#"{{"cmd":"NODE_TROOP","act":"taken",{fields}}}"#);
        let Ok(Incoming::Troop(TroopMessage::Taken { taken, returned, open })) =
            parse(line.as_bytes())
        else {
            panic!("{line}")
        };
        let (taken, returned) = (taken.iter().collect(), returned.iter().collect());
        assert_eq!((taken, returned, open), (expected, given_back, number), "{line}");
    }
    for wrong in [r#""taken":[7,]"#, r#""taken":[07]"#, r#""taken":[7],"open":"#, r#""taken":[7]"#]
    {
        let line = format!(r#"{{"cmd":"NODE_TROOP","act":"taken",{wrong}"#);
        assert!(matches!(parse(line.as_bytes()), Err(Violation::NotJson)), "{line}");
    }
    for wrong in ["[-7]", "[7.5]", "7", r#"["7"]"#] {
        let line = format!(r#"{{"cmd":"NODE_TROOP","act":"taken","taken":{wrong}}}"#);
        assert!(matches!(parse(line.as_bytes()), Err(Violation::Malformed(_))), "{line}");
    }
}

#[test]
fn invalid_messages_are_named_by_their_violation() {
    for line in ["", "not json", "{\"a\":1}}", "{\"cmd\":\"NODE_CLUSTER\"", "\"\u{1}\""] {
        assert!(matches!(parse(line.as_bytes()), Err(Violation::NotJson)), "{line:?}");
    }
    let bad_port =
        br#"{"cmd":"NODE_CLUSTER","act":"queryServer","port":"http","addressType":4,"seq":1}"#;
    assert!(
        matches!(parse(bad_port), Ok(Incoming::Cluster(m)) if m.port.is_some_and(|port| u16::try_from(port).is_err()))
    );
    let unknown = br#"{"cmd":"NODE_SOMETHING","ack":"x","port":[]}"#;
    assert!(matches!(parse(unknown), Ok(Incoming::Unknown)));
    let bad_type =
        br#"{"cmd":"NODE_CLUSTER","act":"queryServer","port":1,"addressType":5,"seq":1}"#;
    assert!(matches!(parse(bad_type), Err(Violation::Malformed(_))));
    let deep = "[".repeat(200_000);
    assert!(matches!(parse(deep.as_bytes()), Err(Violation::TooDeep(_))));
    let brackets_in_text = serde_json::to_string(&deep).unwrap();
    assert!(matches!(parse(brackets_in_text.as_bytes()), Ok(Incoming::User(_))));
}

#[test]
fn messages_of_the_protocol_are_short_and_those_of_programs_may_be_long() {
    let long = "x".repeat(MAX_PROTOCOL_LINE);
    for message in [
        format!(
            r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":1,"addressType":-1,"address":"{long}"}}"#
        ),
        format!(
            r#"{{"cmd":"NODE_TROOP","act":"taken","taken":[{}1]}}"#,
            "1,".repeat(MAX_PROTOCOL_LINE)
        ),
        format!(r#"{{"key":"{long}","cmd":"NODE_SOCKET_GET_COUNT"}}"#),
    ] {
        assert!(matches!(parse(message.as_bytes()), Err(Violation::TooLong(MAX_PROTOCOL_LINE))));
    }
    let message = format!(r#"{{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"{long}"}}"#);
    assert!(matches!(parse(message.as_bytes()), Ok(Incoming::Handle(_))));
    assert!(matches!(
        parse(format!(r#"{{"text":"NODE_{long}"}}"#).as_bytes()),
        Ok(Incoming::User(_))
    ));
}

#[test]
fn the_reason_of_a_violation_does_not_repeat_everything_that_was_sent() {
    let message =
        format!(r#"{{"cmd":"NODE_CLUSTER","act":"queryServer","seq":"{}"}}"#, "x".repeat(100_000));
    let Err(Violation::Malformed(reason)) = parse(message.as_bytes()) else {
        panic!("a text is no number")
    };
    assert!(reason.len() <= MAX_REASON, "{} bytes", reason.len());
}

#[test]
fn fields_of_any_type_are_read_as_node_means_them() {
    let read = |fields: &str| {
        let line = format!(r#"{{"cmd":"NODE_CLUSTER","act":"queryServer",{fields}}}"#);
        let Ok(Incoming::Cluster(m)) = parse(line.as_bytes()) else { panic!("{line}") };
        (m.port, m.backlog, m.readable_all)
    };
    assert_eq!(read(r#""port":"80","backlog":" 7 ","readableAll":"x""#), (Some(80), Some(7), true));
    assert_eq!(read(r#""port":null,"backlog":2.9,"readableAll":0"#), (None, Some(2), false));
    assert_eq!(
        read(r#""port":1e30,"backlog":[1,{"a":2}],"readableAll":{}"#),
        (Some(-2), None, true)
    );
    assert_eq!(
        read(r#""port":18446744073709551615,"backlog":true,"readableAll":null"#),
        (Some(-2), Some(1), false)
    );
}

/// Messages are classified as JavaScript does: otherwise a worker could pass off an internal
/// message as one of its program.
#[test]
fn the_last_cmd_counts_however_it_is_written() {
    for line in [
        r#"{"cmd":"\u004eODE_HANDLE_ACK"}"#,
        r#"{"\u0063md":"NODE_HANDLE_ACK"}"#,
        r#" { "\u0063\u006d\u0064" : "\u004e\u004f\u0044\u0045\u005f\u0048ANDLE_ACK" } "#,
        r#"{"\ud800":1,"cmd":"NODE_HANDLE_ACK"}"#,
        r#"{"cmd":"x","cmd":"NODE_HANDLE_ACK"}"#,
        r#"{"cmd":7,"cmd":"NODE_HANDLE_ACK"}"#,
        r#"{"cmd":"NODE_X","cmd":"NODE_HANDLE_ACK"}"#,
        r#"{"cmd":"NODE_X","\u0063md":"NODE_HANDLE_ACK"}"#,
        r#"{"cmd":"NODE_X","ack":"x","cmd":"NODE_HANDLE","type":"net.Socket","msg":1}"#,
    ] {
        let parsed = parse(line.as_bytes());
        assert!(matches!(parsed, Ok(Incoming::HandleAck) | Err(_)), "{line}: {parsed:?}");
    }
    for line in [
        r#"{"cmd":"NODE_HANDLE_ACK","cmd":"x"}"#,
        r#"["NODE_HANDLE_ACK"]"#,
        r#"{"\ud800":"NODE_"}"#,
        r#"{"cmd":"\ud800NODE_X"}"#,
        r#"{"__proto__":{"cmd":"NODE_HANDLE_ACK"}}"#,
    ] {
        let parsed = parse(line.as_bytes());
        assert!(
            matches!(parsed, Ok(Incoming::User(_)) | Err(Violation::Malformed(_))),
            "{line}: {parsed:?}"
        );
    }
}

#[test]
fn relayed_messages_are_valid_json_to_the_end() {
    for line in [
        r#"{"cmd":"NODE_X","ack":"x",,,"#,
        r#"{"cmd":"NODE_X","ack":"x"}}"#,
        "{\"cmd\":\"NODE_X\",\"ack\":\"x\",\"y\":\u{1}}",
    ] {
        assert!(matches!(parse(line.as_bytes()), Err(Violation::NotJson)), "{line}");
    }
    let not_unicode = b"{\"cmd\":\"NODE_X\",\"ack\":\"x\",\"y\":\"\xff\"}";
    assert!(matches!(parse(not_unicode), Err(Violation::NotJson)));
}
