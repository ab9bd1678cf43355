use super::*;

/// A frame with this value, written by hand.
fn frame(value: &[u8]) -> Vec<u8> {
    [&[0xff, VERSION], value].concat()
}

fn ours(value: &[u8]) -> bool {
    check(&frame(value)) == Ok(Kind::Node { ours: true })
}

#[test]
fn what_node_writes_is_a_value() {
    let json = r#"{"a":[1,-1,0.5,"x","é☃",null,true,{"b":[]}],"cmd":"hello"}"#;
    let mut written = Vec::new();
    crate::wire::advanced::from_json(&mut written, json.as_bytes());
    assert_eq!(check(&written[4..]), Ok(Kind::Program));
    let values: [&[u8]; 14] = [
        b"_",
        b"I\x02",
        b"Z\x10\x01\0\0\0\0\0\0\0",
        b"D\0\0\0\0\0\0\0\0",
        b"s\"\x01x",
        b"R\"\x02ab\x01",
        b";I\x02I\x02:\x02",
        b"'I\x02,\x01",
        b"B\x02ab",
        b"B\x02abV\x42\0\x02\0",
        b"~\x02\x10ab",
        b"rTm\"\x01xcrm\"\x01y.s\"\x01z.",
        b"\\\0\x01\x02ab",
        b"A\x02o{\0^\x01$\0\x02",
    ];
    for value in values {
        assert_eq!(check(&frame(value)), Ok(Kind::Program), "{value:?}");
        // A view may follow its buffer, or not.
        for end in (0..value.len()).filter(|end| value.get(*end) != Some(&b'V')) {
            assert_eq!(
                check(&frame(&value[..end])),
                Err(Violation::NotSerialized),
                "{value:?} cut at {end}"
            );
        }
    }
}

#[test]
fn nodes_own_is_recognised_in_any_disguise() {
    let cmd = b"\"\x03cmd\"\x0fNODE_HANDLE_ACK";
    let wide: Vec<u8> = "NODE_HANDLE_ACK".bytes().flat_map(|byte| [byte, 0]).collect();
    let o = |parts: &[&[u8]]| [b"o", &parts.concat()[..], b"{\x01"].concat();
    assert!(ours(&o(&[cmd])));
    // In other encodings, behind values that are not translated, or too deep to be.
    assert!(ours(&o(&[b"c\x06c\0m\0d\0", b"c\x1e", &wide])));
    assert!(ours(&o(&[b"S\x03cmdS\x0fNODE_HANDLE_ACK"])));
    assert!(ours(&o(&[b"\"\x01x", b";:\0", cmd])));
    assert!(ours(&o(&[b"\"\x01x", &b"A\x01".repeat(100), b"0", &b"$\0\x01".repeat(100), cmd])));
    // As an array with a property, with a hole or without; behind a count, padding, or in what Node
    // wraps.
    assert!(ours(&[b"A\0", &cmd[..], b"$\x01\0"].concat()));
    assert!(ours(&[b"a\x05", &cmd[..], b"@\x01\x05"].concat()));
    assert!(ours(&[b"?\x01\0\0", &o(&[cmd])[..]].concat()));
    assert!(ours(&[b"\\\x01", &o(&[cmd])[..]].concat()));
    // Not in a part of it.
    assert!(!ours(&o(&[b"\"\x01x", &o(&[cmd])])));
    assert_eq!(check(&frame(&o(&[b"\"\x03cmd\"\x06NODE_X"]))), Ok(Kind::Node { ours: false }));
    assert_eq!(check(&frame(&o(&[b"\"\x03cmd\"\x05NODE_"]))), Ok(Kind::Program));
}

#[test]
fn what_costs_too_much_is_refused() {
    let sparse = b"a\xff\xff\xff\x0f@\0\xff\xff\xff\x0f";
    assert_eq!(check(&frame(sparse)), Ok(Kind::Program));
    let many = [b"A\x10".to_vec(), sparse.repeat(16), b"$\0\x10".to_vec()].concat();
    assert_eq!(check(&frame(&many)), Err(Violation::TooCostly(MAX_MEMORY)));
    assert_eq!(check(&frame(b"~\0\xff\xff\xff\xff\x0f")), Err(Violation::TooCostly(MAX_MEMORY)));
    let deep = [b"A\x01".repeat(100_000), b"0".to_vec()].concat();
    assert_eq!(check(&frame(&deep)), Err(Violation::TooDeep(MAX_DEPTH)));
    // More elements than there are bytes.
    assert_eq!(check(&frame(b"A\xff\xff\xff\xff\x0f0")), Err(Violation::NotSerialized));
}

#[test]
fn what_is_no_value_is_refused() {
    assert_eq!(check(b""), Err(Violation::NotSerialized));
    assert_eq!(check(b"junk"), Err(Violation::NotSerialized));
    // Older versions are read in other ways.
    assert_eq!(check(b"\xff\x0do{\0"), Err(Violation::NotSerialized));
    for shared in [b"u\0", b"t\0", b"p\0", b"w\0", b"m\0"] {
        assert_eq!(check(&frame(shared)), Err(Violation::NotSerialized));
    }
    // What a later V8 may know is for it to read.
    assert_eq!(check(&frame(b"!")), Ok(Kind::Program));
    assert_eq!(check(b"\xff\x10!"), Ok(Kind::Program));
}
