//! Messages and sockets to and from a Node primary.

use super::*;

#[test]
fn every_kind_of_json_value_goes_both_ways() {
    for policy in FORMATS {
        let mut primary = NodePrimary::start(policy);
        primary.run("rust('echo')");
        primary.event("online", 1);
        let big = "0123456789abcdef".repeat(1 << 16);
        for value in [
            json!(null),
            json!(true),
            json!(42),
            json!(-0.5),
            json!(""),
            json!("text"),
            json!([1, "two", [3], {"four": null}]),
            json!({"a": {"b": [true, false, null]}}),
            json!("äöü русский 日本語 🦀 \u{2028} \0 \n \" \\"),
            json!({"cmd": "NODE_"}),
            json!(big),
        ] {
            primary.run(&format!("cluster.workers[1].send({value})"));
            assert_eq!(primary.message(1), json!({"echo": value}));
        }
    }
}

#[test]
fn values_of_javascript_arrive_as_json() {
    let mut primary = NodePrimary::start("rr advanced");
    primary.run("const w = rust('echo')");
    primary.event("online", 1);
    for (value, arrives) in [
        ("new Date(0)", json!("1970-01-01T00:00:00.000Z")),
        ("new Map([['a', 1], ['b', new Set([2])]])", json!([["a", 1], ["b", [2]]])),
        ("{ big: 2n ** 70n, none: undefined }", json!({"big": "1180591620717411303424"})),
        ("Buffer.from('hi')", json!({"type": "Buffer", "data": [104, 105]})),
        ("[, Infinity]", json!([null, null])),
    ] {
        primary.run(&format!("w.send({value})"));
        assert_eq!(primary.message(1), json!({"echo": arrives}));
    }
    // What nothing can be made of is not delivered, and stops nothing.
    primary.run("const own = {}; own.own = own; w.send(own); w.send('next')");
    assert_eq!(primary.message(1), json!({"echo": "next"}));
}

#[test]
fn messages_sent_before_the_worker_is_up_arrive_in_order() {
    for policy in FORMATS {
        let mut primary = NodePrimary::start(policy);
        primary.run("const w = rust('echo'); for (let n = 0; n < 1000; n++) w.send(n)");
        for n in 0..1000 {
            assert_eq!(primary.message(1), json!({"echo": n}));
        }
    }
}

#[test]
fn many_messages_of_a_worker_arrive_in_order() {
    for policy in FORMATS {
        let mut primary = NodePrimary::start(policy);
        primary.run("rust('echo').send({ flood: 2000 })");
        for n in 0..2000 {
            assert_eq!(primary.message(1), n);
        }
    }
}

#[test]
fn a_node_primary_asks_and_answers_by_the_convention() {
    for policy in FORMATS {
        let mut primary = NodePrimary::start(policy);
        primary.run("const w = rust('echo'); w.send({ troop: 'request', id: 5, body: ['x'] })");
        assert_eq!(
            primary.message(1),
            json!({"troop": "reply", "id": 5, "body": {"you asked": ["x"]}})
        );
        primary.run("w.send({ troop: 'request', id: 6, body: 'refuse' })");
        assert_eq!(primary.message(1), json!({"troop": "reply", "id": 6, "error": "I will not"}));
        primary.run("w.once('message', ({ id, body }) => w.send({ troop: 'reply', id, body: `${body} this!` })); w.send('ask')");
        assert_eq!(primary.message(1)["body"], "what now?");
        assert_eq!(primary.message(1), json!({"answer": "what now? this!"}));
    }
}

// ---- sockets ----

/// A server whose connections the primary gives to its worker with this message.
fn giving(policy: &str, how: &str) -> (NodePrimary, u16) {
    let mut primary = NodePrimary::start(policy);
    primary.run(&format!(
        "const w = rust('echo'); w.on('message', (m, s) => s && s.end('back from the worker'));
         const s = require('net').createServer((c) => w.send('{how}', c)).listen(0, '127.0.0.1', () => say(s.address()))"
    ));
    let port = primary.until(&json!({"address": "127.0.0.1"}))["port"].as_u64().unwrap();
    (primary, u16::try_from(port).unwrap())
}

#[test]
fn a_node_primary_can_give_its_connections_away() {
    for policy in FORMATS {
        let (mut primary, port) = giving(policy, "use it");
        for _ in 0..3 {
            assert_eq!(whole(connect(port)), "tcp from the worker");
            assert_eq!(primary.message(1), json!({"used": "use it"}));
        }
    }
}

#[test]
fn connections_passed_back_and_forth_arrive() {
    for policy in FORMATS {
        let (mut primary, port) = giving(policy, "back");
        for _ in 0..3 {
            assert_eq!(whole(connect(port)), "back from the worker");
            assert_eq!(primary.message(1), json!("there you are"));
        }
    }
}

#[test]
fn a_node_server_can_close_once_the_connections_it_gave_away_have_ended() {
    for policy in FORMATS {
        let (mut primary, port) = giving(policy, "use it");
        assert_eq!(whole(connect(port)), "tcp from the worker");
        primary.message(1);
        primary.run("s.close(() => say({ closed: true }))");
        primary.until(&json!({"closed": true}));
    }
}

#[test]
fn a_node_primary_can_give_its_servers_away() {
    for policy in FORMATS {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let mut primary = NodePrimary::start(policy);
        primary.run("const w = rust('echo'); const net = require('net')");
        primary
            .run("const t = net.createServer().listen(0, '127.0.0.1', () => { say(t.address()); w.send('tcp', t); t.close() })");
        let port = primary.until(&json!({"address": "127.0.0.1"}))["port"].as_u64().unwrap();
        assert_eq!(whole(connect(u16::try_from(port).unwrap())), "accepted by the worker");
        assert_eq!(primary.message(1), json!({"used": "tcp"}));
        // With its path out of Node's way, which removes it otherwise.
        let moved = directory.path().join("t");
        let close = format!(
            "require('fs').renameSync('{}', '{}'); u.close(() => say({{ sent: 1 }}))",
            path.display(),
            moved.display()
        );
        let send = format!("w.send('unix', u, () => {{ {close} }})");
        primary.run(&format!(
            "const u = net.createServer().listen('{}', () => {send})",
            path.display()
        ));
        primary.until(&json!({"sent": 1}));
        assert_eq!(whole(UnixStream::connect(&moved).unwrap()), "accepted by the worker");
        assert_eq!(primary.message(1), json!({"used": "unix"}));
    }
}

#[test]
fn a_node_primary_can_give_its_udp_socket_away() {
    for policy in FORMATS {
        let mut primary = NodePrimary::start(policy);
        primary.run("const w = rust('echo'); const u = require('dgram').createSocket('udp4')");
        primary.run("u.bind(0, '127.0.0.1', () => { w.send('udp', u, () => { say(u.address()); u.close() }) })");
        let port = primary.until(&json!({"address": "127.0.0.1"}))["port"].as_u64().unwrap();
        let client = UdpSocket::bind(local(0)).unwrap();
        client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        client.send_to(b"hello", local(u16::try_from(port).unwrap())).unwrap();
        let mut buffer = [0; 100];
        let n = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"udp from the worker");
        assert_eq!(primary.message(1), json!({"used": "udp"}));
    }
}
