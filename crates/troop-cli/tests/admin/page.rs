//! A strict parser of metrics in the text format, version 0.0.4.

use std::collections::{BTreeMap, BTreeSet};

/// The samples of a page, by their names and sorted labels: `troop_app_up{app="web"}`.
pub(crate) type Samples = BTreeMap<String, f64>;

/// Parses a page.
///
/// # Panics
/// If anything in it is not as the format, or the conventions for names, want it.
pub(crate) fn parse(page: &str) -> Samples {
    assert!(page.ends_with('\n'), "a last line without its end");
    let (mut samples, mut families) = (Samples::new(), BTreeMap::<&str, &str>::new());
    let (mut family, mut helped) = ("", "");
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            assert!(is_name(name) && !help.trim().is_empty(), "{line}");
            helped = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(name, helped, "{line}: a help text comes before");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert_eq!(families.insert(name, kind), None, "{line}: described before");
            family = name;
        } else {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = split(series);
            let of_histogram = ["_bucket", "_sum", "_count"].map(|end| format!("{family}{end}"));
            let is_of_family = match families.get(family) {
                Some(&"histogram") => of_histogram.iter().any(|other| other == name),
                Some(_) => name == family,
                None => false,
            };
            assert!(is_of_family, "{line}: not of the family {family:?}, which is described last");
            let value = match value {
                "+Inf" => f64::INFINITY,
                value => value.parse().expect("a number"),
            };
            let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
            let key = format!("{name}{{{}}}", labels.join(","));
            assert_eq!(samples.insert(key, value), None, "{line}: a second time");
        }
    }
    for (name, kind) in families {
        if kind == "histogram" {
            check_histogram(name, &samples);
        }
    }
    samples
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Splits a series into its name and its labels, unescaped and sorted.
fn split(series: &str) -> (&str, BTreeMap<String, String>) {
    let mut labels = BTreeMap::new();
    let Some((name, rest)) = series.split_once('{') else { return (series, labels) };
    assert!(is_name(name), "{series}");
    let mut rest = rest.strip_suffix('}').expect("the end of the labels");
    while !rest.is_empty() {
        let (label, text) = rest.split_once("=\"").expect("a value in quotation marks");
        assert!(is_name(label), "{series}");
        let (mut value, mut chars) = (String::new(), text.char_indices());
        let end = loop {
            match chars.next().expect("the end of a value") {
                (at, '"') => break at + 1,
                (_, '\\') => match chars.next().expect("an escaped character").1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    c => panic!("{series}: \\{c}"),
                },
                (_, c) => {
                    assert!(!c.is_control(), "{series}");
                    value.push(c);
                }
            }
        };
        assert_eq!(labels.insert(label.to_owned(), value), None, "{series}: {label} twice");
        rest = &text[end..];
        rest = rest.strip_prefix(',').unwrap_or_else(|| {
            assert_eq!(rest, "", "{series}");
            rest
        });
    }
    (name, labels)
}

/// Buckets are cumulative, and the last one has all.
fn check_histogram(name: &str, samples: &Samples) {
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (series, count) in samples {
        let Some(labels) = series.strip_prefix(&format!("{name}_bucket")) else { continue };
        let (_, mut labels) = split(&format!("x{labels}"));
        let bound = labels.remove("le").expect("a bound");
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
        buckets.entry(format!("{labels:?}")).or_default().push((bound, *count));
    }
    let counts: BTreeSet<_> =
        samples.keys().filter(|key| key.starts_with(&format!("{name}_count{{"))).collect();
    assert_eq!(buckets.len(), counts.len(), "{name}");
    for (labels, mut buckets) in buckets {
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        assert!(
            buckets.is_sorted_by(|one, other| one.1 <= other.1),
            "{name} {labels}: {buckets:?}"
        );
        assert_eq!(buckets.last().unwrap().0, f64::INFINITY, "{name} {labels}");
    }
}

#[test]
fn the_parser_takes_what_is_right_and_nothing_else() {
    let right = "# HELP a_total A.\n# TYPE a_total counter\na_total{y=\"\\\"\",x=\"1\"} 2\n";
    assert_eq!(parse(right), Samples::from([("a_total{x=\"1\",y=\"\\\"\"}".into(), 2.0)]));
    for wrong in [
        "# HELP a A.\n# TYPE a counter\n",
        "# HELP a A.\n# TYPE a gauge\na 1",
        "# TYPE a gauge\na 1\n",
        "a 1\n",
        "# HELP a A.\n# TYPE a gauge\nb 1\n",
        "# HELP a A.\n# TYPE a gauge\na{x=\"1\"} 1\na{x=\"1\"} 1\n",
        "# HELP a A.\n# TYPE a gauge\na{x=\"\\q\"} 1\n",
        "# HELP a A.\n# TYPE a gauge\na{x=\"1\"y=\"1\"} 1\n",
        "# HELP a A.\n# TYPE a gauge\na{x=\"1\"} one\n",
        "# HELP a A.\n# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum{} 1\na_count{} 1\n",
    ] {
        assert!(std::panic::catch_unwind(|| parse(wrong)).is_err(), "{wrong}");
    }
}
