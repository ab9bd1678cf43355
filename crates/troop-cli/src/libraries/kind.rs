//! Whose message is whose, by its first or last bytes: what is not of such a library costs no more.

/// The library that has sent a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    SocketIo,
    RateLimiter,
    Log4js,
    /// What is handled elsewhere, or is known to need no answer.
    Known,
    Other,
}

/// The part at the end of a message in which the library's name stands: its message has an identifier
/// behind it.
const MAX_END: usize = 128;

impl Kind {
    pub(super) fn of(text: &str) -> Kind {
        if !text.starts_with('{') {
            // What programs say to PM2 when they are ready.
            return if text == "\"ready\"" { Kind::Known } else { Kind::Other };
        }
        if text.starts_with(r#"{"channel":"rate_limiter_flexible","#) {
            return Kind::RateLimiter;
        }
        if text.starts_with(r#"{"topic":"log4js:message","#) {
            return Kind::Log4js;
        }
        if [r#"{"troop":"#, r#"{"type":"prom-client:"#].iter().any(|own| text.starts_with(own)) {
            return Kind::Known;
        }
        let end = &text.as_bytes()[text.len().saturating_sub(MAX_END)..];
        match memchr::memmem::find(end, br#""source":"_sio_adapter""#) {
            Some(_) => Kind::SocketIo,
            None => Kind::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_known_by_its_ends() {
        let long = "x".repeat(1000);
        for (text, kind) in [
            (r#"{"channel":"rate_limiter_flexible","type":"init","opts":{}}"#, Kind::RateLimiter),
            (r#"{"topic":"log4js:message","data":"[]"}"#, Kind::Log4js),
            (r#"{"type":3,"uid":"a","nsp":"/","source":"_sio_adapter"}"#, Kind::SocketIo),
            (
                r#"{"type":8,"source":"_sio_adapter","requesterUid":"0123456789abcdef"}"#,
                Kind::SocketIo,
            ),
            (r#"{"troop":"primary-part","name":"fork"}"#, Kind::Known),
            (r#"{"type":"prom-client:getMetricsRes"}"#, Kind::Known),
            (r#""ready""#, Kind::Known),
            (r#""started""#, Kind::Other),
            ("7", Kind::Other),
            ("{}", Kind::Other),
            (&format!(r#"{{"source":"_sio_adapter","of":"{long}"}}"#), Kind::Other),
        ] {
            assert_eq!(Kind::of(text), kind, "{text}");
        }
    }
}
