//! Apps as PM2's users describe them, in a file or by flags.

use serde_json::{Value, json};
use troop_testkit::talk;

use super::Home;

/// A server that says how it was started.
pub const SERVER: &str = "
const told = () => ({
  args: process.argv.slice(2), node: process.execArgv, env: process.env.GREETING, port: process.env.PORT, cwd: process.cwd(),
  instance: process.env.MY_INSTANCE, uid: process.getuid(), gid: process.getgid(), script: process.argv[1], name: process.argv0,
});
console.log('on standard output');
console.error('on standard error');
require('http').createServer((q, s) => s.end(JSON.stringify(told()))).listen(0, '127.0.0.1');
";

/// An app as PM2's file describes it.
pub fn file(fields: &Value) -> String {
    let mut app = json!({ "name": "app", "script": "./server.js" });
    app.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({ "apps": [app] }).to_string()
}

/// The app is described by a file, and then by flags.
pub fn both(script: &str, fields: &Value, flags: &[&str], start: impl Fn(&Home, &[&str])) {
    let home = Home::with(&[("server.js", script), ("ecosystem.json", &file(fields))]);
    start(&home, &["start", "ecosystem.json"]);
    let home = Home::with(&[("server.js", script)]);
    start(&home, &[&["start", "server.js", "--name", "app", "-i", "1"], flags].concat());
}

/// What its server says of itself.
pub fn told(home: &Home) -> Value {
    let shown = home.show("app");
    let port: u16 = shown["listeners"][0]["address"]
        .as_str()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let answer = talk(([127, 0, 0, 1], port), "GET / HTTP/1.0\r\n\r\n").unwrap();
    serde_json::from_str(answer.rsplit("\r\n").next().unwrap()).unwrap()
}
