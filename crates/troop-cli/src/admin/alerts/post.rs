//! Posts an alert to a URL, by curl: it knows the machine's authorities and proxies, and troop needs no
//! TLS of its own.

use std::io::Read as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::run::{TIMEOUT, give};
use crate::args::AlertForm;

/// The longest file with a URL.
const MAX_FILE: u64 = 4096;
/// Where Slack is.
const SLACK: &str = "https://hooks.slack.com/";

/// Posts an alert.
///
/// # Errors
/// The reason, for people. The URL is not part of it.
pub(super) fn post(url: &str, form: Option<AlertForm>, alert: &Value) -> Result<(), String> {
    let url = match url.strip_prefix('@') {
        Some(file) => read(file).map_err(|e| format!("cannot read {file}: {e}"))?,
        None => url.to_owned(),
    };
    let usual = if url.starts_with(SLACK) { AlertForm::Slack } else { AlertForm::Json };
    let body = match form.unwrap_or(usual) {
        AlertForm::Json => alert.to_string(),
        AlertForm::Slack => json!({ "text": for_slack(&alert["text"]) }).to_string(),
    };
    let mut curl = Command::new("curl");
    // Without the user's own settings, and with all of these from a pipe that nobody else sees.
    curl.args(["--disable", "--config", "-"]);
    curl.stdout(Stdio::null()).stderr(Stdio::piped());
    give(curl, &settings(&url, &body), TIMEOUT).map_err(|e| {
        let hint =
            if e.contains("cannot be started") { "; install it, or use --alert" } else { "" };
        format!("curl {e}{hint}")
    })
}

fn read(file: &str) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(MAX_FILE).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Returns the text as Slack takes it, for which three characters begin something.
fn for_slack(text: &Value) -> String {
    let text = text.as_str().unwrap_or_default();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Returns what curl is to do, as its file of settings has it.
fn settings(url: &str, body: &str) -> String {
    let quoted = |text: &str| {
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        text.replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
    };
    // `data-raw` reads no file, whatever the text begins with.
    format!(
        "fail\nsilent\nshow-error\nmax-time = 20\nproto = \"=http,https\"\n\
         header = \"Content-Type: application/json\"\ndata-raw = \"{}\"\nurl = \"{}\"\n",
        quoted(body),
        quoted(url)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_url_or_an_alert_is_another_setting_of_curls() {
        let settings = settings("http://x/\"\noutput = \"/etc/passwd", "{\"a\": \"\\\"\"}");
        assert_eq!(settings.lines().count(), 8, "{settings}");
        assert!(settings.contains(r#"data-raw = "{\"a\": \"\\\"\"}""#), "{settings}");
        assert!(settings.contains(r#"url = "http://x/\"\noutput = \"/etc/passwd""#), "{settings}");
    }

    #[test]
    fn what_slack_would_take_for_a_command_is_text() {
        assert_eq!(for_slack(&json!("<!channel> & more")), "&lt;!channel&gt; &amp; more");
    }
}
