//! The order in which several apps start: side by side, except after those that they name. They stop the
//! other way round.

use std::collections::{BTreeMap, BTreeSet};

use super::Planned;

/// Returns the numbers of the apps that each one waits for, of those that are started with it.
pub(crate) fn numbers(planned: &[Planned]) -> Vec<BTreeSet<usize>> {
    let of = |app: &Planned| {
        let is_before = |other: &&Planned| {
            other.choice.word == app.choice.word && app.after.contains(&other.choice.app)
        };
        (0..).zip(planned).filter(|(_, other)| is_before(other)).map(|(at, _)| at).collect()
    };
    planned.iter().map(of).collect()
}

/// Returns the numbers of apps in groups that start one after another. `after` has the numbers of
/// the apps that each one waits for.
/// Those that wait for each other in a circle, which no file can have, come last.
pub(crate) fn groups(after: &[BTreeSet<usize>]) -> Vec<Vec<usize>> {
    let mut left: Vec<usize> = (0..after.len()).collect();
    let mut started = BTreeSet::new();
    let mut groups = Vec::new();
    while !left.is_empty() {
        let (now, later): (Vec<usize>, Vec<usize>) =
            left.iter().partition(|app| after[**app].is_subset(&started));
        if now.is_empty() {
            groups.push(later);
            break;
        }
        started.extend(now.iter().copied());
        groups.push(now);
        left = later;
    }
    groups
}

/// Returns the number of the group that each app starts in, of apps with those that they start after.
pub(crate) fn ranks(apps: &[(String, Vec<String>)]) -> BTreeMap<String, usize> {
    let numbers = |after: &[String]| {
        let is_before = |at: &usize| after.contains(&apps[*at].0);
        (0..apps.len()).filter(is_before).collect()
    };
    let numbers: Vec<_> = apps.iter().map(|(_, after)| numbers(after)).collect();
    let ranked = groups(&numbers).into_iter().enumerate();
    ranked
        .flat_map(|(rank, group)| group.into_iter().map(move |at| (apps[at].0.clone(), rank)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_start_after_those_that_they_wait_for() {
        let groups = |after: &[&[usize]]| {
            groups(&after.iter().map(|app| app.iter().copied().collect()).collect::<Vec<_>>())
        };
        assert_eq!(groups(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(groups(&[&[], &[], &[]]), vec![vec![0, 1, 2]]);
        assert_eq!(groups(&[&[2], &[], &[1]]), vec![vec![1], vec![2], vec![0]]);
        assert_eq!(groups(&[&[1, 2], &[], &[]]), vec![vec![1, 2], vec![0]]);
        assert_eq!(groups(&[&[1], &[0], &[]]), vec![vec![2], vec![0, 1]]);
        assert_eq!(groups(&[&[0]]), vec![vec![0]]);
    }
}
