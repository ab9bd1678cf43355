//! The scheduling of a listener, as it is configured and written.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{
    ByClient, Callback, CallbackPolicy, LeastConnections, ListenerPolicy, Policy, PowerOfTwo,
    Question, RoundRobin, Weighted,
};

/// The scheduling of a listener's connections. Written as on the command line: `round-robin`
/// (Node's `rr`), `auto`, `weighted`, `least-connections`, `p2c`, `sticky`, `shared` (Node's
/// `none`), `steered`. `sticky:` takes the options of [`Sticky`], and so does `steered:sticky`.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub enum Scheduling {
    /// The primary accepts and hands each connection to the next ready worker in turn (Node's
    /// `SCHED_RR`).
    RoundRobin,
    /// As [`Scheduling::RoundRobin`] while connections are few, and as [`Scheduling::Steered`] while
    /// they are many ([`AutoLimits`](crate::steer::AutoLimits)), without weights. UDP sockets are
    /// [shared](Scheduling::Shared). Where the kernel cannot steer, it is round robin.
    #[default]
    Auto,
    /// Round robin with turns in proportion to the workers' weights.
    Weighted,
    /// The primary hands each connection to the worker with the fewest connections relative to its
    /// weight.
    LeastConnections,
    /// The primary hands each connection to the less busy of two random workers (power of two
    /// choices).
    PowerOfTwo,
    /// The primary hands all connections of one client to the same worker.
    Sticky(Sticky),
    /// All workers accept on one socket, and the kernel decides (Node's `SCHED_NONE`). No cost for
    /// the primary, but uneven.
    Shared,
    /// Each worker accepts on a socket of its own. The kernel chooses the socket by a program of
    /// the primary: at random by weight and load or, with [`Sticky`], by the client's address. No
    /// cost for the primary per connection. For TCP and UDP; connections of listeners that cannot
    /// be steered are handed over in turn.
    Steered(Option<Sticky>),
    /// A policy of the embedding program.
    Custom(Custom),
    /// The embedding program chooses a worker for each connection, asynchronously; see
    /// [`Scheduling::callback`].
    Callback(Callback),
}

/// Creates a [`Policy`] of the embedding program for each listener.
#[derive(Clone)]
pub struct Custom {
    make: Arc<dyn Fn() -> Box<dyn Policy> + Send + Sync>,
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Custom").finish_non_exhaustive()
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Custom) -> bool {
        Arc::ptr_eq(&self.make, &other.make)
    }
}

/// How clients are identified. Written as
/// `sticky:prefix=24,prefix6=56,proxy=pass,cookie=sid,wait=500`, each option at most once and in
/// any order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sticky {
    /// Number of leading bits of an IPv4 address that identify a client (`prefix`, default 32).
    pub prefix4: u8,
    /// Number of leading bits of an IPv6 address that identify a client (`prefix6`, default 64: the
    /// network of a household).
    pub prefix6: u8,
    /// The handling of PROXY headers, if a proxy sends them (`proxy=pass` or `proxy=strip`).
    pub proxy: Option<Header>,
    /// The part of the first HTTP request that identifies a client (`cookie=NAME` or `query=NAME`).
    /// If a request has none, the address counts.
    pub http: Option<Http>,
    /// Timeout of a client's first bytes, where they are needed (`wait`, in milliseconds, default
    /// 1000). After it, the address counts.
    pub wait: Duration,
}

/// The handling of a PROXY protocol header (version 1 or 2) in front of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Header {
    /// The program receives the header.
    Pass,
    /// The primary removes the header. Connections without one are handed over unchanged.
    Strip,
}

/// The part of an HTTP request that identifies a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Http {
    /// The value of this cookie.
    Cookie(String),
    /// The value of this parameter in the URL's query, without decoding.
    Query(String),
}

impl Default for Sticky {
    fn default() -> Sticky {
        Sticky { prefix4: 32, prefix6: 64, proxy: None, http: None, wait: Duration::from_secs(1) }
    }
}

impl Sticky {
    /// Whether the first bytes of each connection are needed.
    #[must_use]
    pub fn needs_bytes(&self) -> bool {
        self.proxy.is_some() || self.http.is_some()
    }
}

impl Scheduling {
    /// Uses a policy of the embedding program; `make` is called once per listener.
    pub fn custom<P: Policy + 'static>(make: impl Fn() -> P + Send + Sync + 'static) -> Scheduling {
        Scheduling::Custom(Custom { make: Arc::new(move || Box::new(make())) })
    }

    /// Asks the embedding program for each connection's worker: the primary calls `ask` with a
    /// [`Question`], which any thread can [assign](Question::assign). `ask` must not block. A
    /// connection waits up to `wait`; after that, or if the question is dropped, it goes to the
    /// next worker in turn. At most 1024 connections wait; the primary accepts no more meanwhile.
    /// For decisions that are made elsewhere, such as on another language's thread;
    /// [`Scheduling::custom`] is faster.
    pub fn callback(wait: Duration, ask: impl Fn(Question) + Send + Sync + 'static) -> Scheduling {
        Scheduling::Callback(Callback::new(wait, ask))
    }

    /// Whether the primary accepts all connections and hands them over.
    #[must_use]
    pub fn is_handed(&self) -> bool {
        !matches!(self, Scheduling::Auto | Scheduling::Shared | Scheduling::Steered(_))
    }

    /// Whether the workers' weights count. Under round robin, [`Scheduling::Auto`] and
    /// [`Scheduling::Shared`] they do not.
    #[must_use]
    pub fn is_weighted(&self) -> bool {
        !matches!(self, Scheduling::RoundRobin | Scheduling::Auto | Scheduling::Shared)
    }

    /// Returns how clients are identified, for sticky scheduling.
    #[must_use]
    pub fn sticky(&self) -> Option<&Sticky> {
        match self {
            Scheduling::Sticky(sticky) | Scheduling::Steered(Some(sticky)) => Some(sticky),
            _ => None,
        }
    }

    /// Creates the policy of one listener; `None` for shared ones. A steered listener has a policy
    /// for connections whose worker is gone.
    pub(crate) fn policy(&self, seed: u64) -> Option<ListenerPolicy> {
        Some(match self {
            Scheduling::RoundRobin | Scheduling::Auto => {
                ListenerPolicy::RoundRobin(RoundRobin::default())
            }
            Scheduling::Weighted => ListenerPolicy::Weighted(Weighted::default()),
            Scheduling::LeastConnections => {
                ListenerPolicy::LeastConnections(LeastConnections::default())
            }
            Scheduling::PowerOfTwo | Scheduling::Steered(None) => {
                ListenerPolicy::PowerOfTwo(PowerOfTwo::new(seed))
            }
            Scheduling::Sticky(_) | Scheduling::Steered(Some(_)) => {
                ListenerPolicy::ByClient(ByClient::default())
            }
            Scheduling::Custom(custom) => ListenerPolicy::Custom((custom.make)()),
            Scheduling::Callback(_) => ListenerPolicy::Callback(CallbackPolicy::default()),
            Scheduling::Shared => return None,
        })
    }
}

impl fmt::Display for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, sticky) = match self {
            Scheduling::RoundRobin => ("round-robin", None),
            Scheduling::Auto => ("auto", None),
            Scheduling::Weighted => ("weighted", None),
            Scheduling::LeastConnections => ("least-connections", None),
            Scheduling::PowerOfTwo => ("p2c", None),
            Scheduling::Sticky(sticky) => ("sticky", Some(sticky)),
            Scheduling::Shared => ("shared", None),
            Scheduling::Steered(None) => ("steered", None),
            Scheduling::Steered(Some(sticky)) => ("steered:sticky", Some(sticky)),
            Scheduling::Custom(_) => ("custom", None),
            Scheduling::Callback(_) => ("asked", None),
        };
        f.write_str(name)?;
        let Some(sticky) = sticky else { return Ok(()) };
        let Sticky { prefix4, prefix6, proxy, http, wait } = sticky;
        let usual = Sticky::default();
        let parts = [
            (*prefix4 != usual.prefix4).then(|| format!("prefix={prefix4}")),
            (*prefix6 != usual.prefix6).then(|| format!("prefix6={prefix6}")),
            proxy.map(|proxy| {
                if proxy == Header::Pass { "proxy=pass".into() } else { "proxy=strip".into() }
            }),
            http.as_ref().map(|http| match http {
                Http::Cookie(name) => format!("cookie={name}"),
                Http::Query(name) => format!("query={name}"),
            }),
            (*wait != usual.wait).then(|| format!("wait={}", wait.as_millis())),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        let before = if matches!(self, Scheduling::Steered(_)) { "," } else { ":" };
        if parts.is_empty() { Ok(()) } else { write!(f, "{before}{}", parts.join(",")) }
    }
}

impl FromStr for Scheduling {
    type Err = BadScheduling;

    /// Parses troop's names and those of `NODE_CLUSTER_SCHED_POLICY` (`rr`, `none`).
    fn from_str(text: &str) -> Result<Scheduling, BadScheduling> {
        let (name, options) =
            text.split_once(':').map_or((text, None), |(name, options)| (name, Some(options)));
        let scheduling = match (name, options) {
            ("round-robin" | "rr", None) => Scheduling::RoundRobin,
            ("auto", None) => Scheduling::Auto,
            ("weighted", None) => Scheduling::Weighted,
            ("least-connections" | "lc", None) => Scheduling::LeastConnections,
            ("p2c" | "power-of-two", None) => Scheduling::PowerOfTwo,
            ("shared" | "none", None) => Scheduling::Shared,
            ("steered", None) => Scheduling::Steered(None),
            ("sticky", options) => Scheduling::Sticky(sticky(options.unwrap_or_default())?),
            ("steered", Some(options)) => {
                let rest = match options.strip_prefix("sticky") {
                    Some("") => "",
                    Some(rest) => {
                        rest.strip_prefix(',').ok_or_else(|| BadScheduling::option(options))?
                    }
                    None => return Err(BadScheduling::option(options)),
                };
                let sticky = sticky(rest)?;
                if sticky.needs_bytes() {
                    let why = "the kernel chooses before the first byte, so `steered` goes by the address alone; use `sticky` for proxy, cookie and query";
                    return Err(BadScheduling(why.into()));
                }
                Scheduling::Steered(Some(sticky))
            }
            (
                "round-robin" | "rr" | "auto" | "weighted" | "least-connections" | "lc" | "p2c"
                | "power-of-two" | "shared" | "none",
                Some(_),
            ) => {
                return Err(BadScheduling(format!("the policy {name} has no options")));
            }
            _ => {
                return Err(BadScheduling(format!(
                    "there is no policy {name:?}; there are round-robin, auto, weighted, least-connections, p2c, sticky, shared and steered"
                )));
            }
        };
        Ok(scheduling)
    }
}

fn sticky(options: &str) -> Result<Sticky, BadScheduling> {
    let mut sticky = Sticky::default();
    let mut seen: Vec<&str> = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').ok_or_else(|| BadScheduling::option(option))?;
        if seen.contains(&name) {
            return Err(BadScheduling(format!("{name} is given twice")));
        }
        seen.push(name);
        let number = |most: u32| match value.parse::<u32>() {
            Ok(n) if n <= most => Ok(n),
            _ => Err(BadScheduling(format!(
                "{name} must be a number from 0 to {most}, not {value:?}"
            ))),
        };
        match name {
            "prefix" => sticky.prefix4 = number(32)? as u8,
            "prefix6" => sticky.prefix6 = number(128)? as u8,
            "wait" => sticky.wait = Duration::from_millis(number(60_000)?.into()),
            "proxy" => {
                sticky.proxy = Some(match value {
                    "pass" => Header::Pass,
                    "strip" => Header::Strip,
                    _ => {
                        return Err(BadScheduling(format!(
                            "proxy must be `pass` or `strip`, not {value:?}"
                        )));
                    }
                });
            }
            "cookie" | "query" if value.is_empty() => {
                return Err(BadScheduling(format!("{name} needs a name")));
            }
            "cookie" | "query" if sticky.http.is_some() => {
                return Err(BadScheduling(
                    "there can be a cookie or a query parameter, not both".into(),
                ));
            }
            "cookie" => sticky.http = Some(Http::Cookie(value.into())),
            "query" => sticky.http = Some(Http::Query(value.into())),
            _ => return Err(BadScheduling::option(option)),
        }
    }
    Ok(sticky)
}

/// The error for a text that is not a [`Scheduling`], with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadScheduling(pub(super) String);

impl BadScheduling {
    fn option(option: &str) -> BadScheduling {
        let known = "prefix=BITS, prefix6=BITS, proxy=pass|strip, cookie=NAME, query=NAME, wait=MILLISECONDS";
        BadScheduling(format!(
            "{option:?} is no option of a policy; after `sticky:` there can be {known}; after `steered:`, `sticky`"
        ))
    }
}

impl fmt::Display for BadScheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadScheduling {}

impl Serialize for Scheduling {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if matches!(self, Scheduling::Custom(_) | Scheduling::Callback(_)) {
            let why = "a policy that is the program's own cannot be written down";
            return Err(serde::ser::Error::custom(why));
        }
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scheduling {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scheduling, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheduling_parses_from_its_own_text() {
        for text in [
            "round-robin",
            "auto",
            "weighted",
            "least-connections",
            "p2c",
            "shared",
            "steered",
            "sticky",
            "sticky:prefix=24,prefix6=48,proxy=strip,cookie=sid,wait=250",
            "sticky:query=id",
            "sticky:proxy=pass",
            "steered:sticky",
            "steered:sticky,prefix=16",
        ] {
            assert_eq!(text.parse::<Scheduling>().map(|s| s.to_string()), Ok(text.to_owned()));
        }
        assert_eq!("rr".parse(), Ok(Scheduling::RoundRobin));
        assert_eq!("none".parse(), Ok(Scheduling::Shared));
    }

    #[test]
    fn errors_name_the_alternatives() {
        for (text, says) in [
            ("fair", "there are round-robin"),
            ("", "there are round-robin"),
            ("p2c:3", "has no options"),
            ("sticky:prefix=33", "from 0 to 32"),
            ("sticky:prefix", "after `sticky:` there can be prefix=BITS"),
            ("sticky:cookie=", "needs a name"),
            ("sticky:cookie=a,query=b", "not both"),
            ("sticky:prefix=8,prefix=9", "given twice"),
            ("sticky:proxy=yes", "`pass` or `strip`"),
            ("steered:sticky,cookie=a", "before the first byte"),
            ("steered:fast", "after `steered:`, `sticky`"),
        ] {
            let error = text.parse::<Scheduling>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
