//! Check of `regions_class_order`: predicted labels must show the regions that were predicted.

use std::collections::BTreeSet;

/// A region with its name, its member labels, and the label that predicted label maps show for it.
pub(super) struct Region<'a> {
    pub name: &'a str,
    pub members: BTreeSet<i16>,
    pub output: i16,
}

/// Describes a `regions_class_order` that cannot work, with the order that would; `None` if it works.
///
/// Regions are entered into a label map one after the other; a later one overwrites an earlier one. Entry `i` of the
/// order is the label that region `i` enters.
pub(super) fn order_problem(regions: &[Region]) -> Option<String> {
    let defect = foreign_value(regions).or_else(|| overwritten(regions)).or_else(|| ambiguous_value(regions))?;
    Some(format!("regions_class_order cannot work: {defect}; {}", remedy(regions)))
}

fn foreign_value(regions: &[Region]) -> Option<String> {
    let region = regions.iter().find(|region| !region.members.contains(&region.output))?;
    let members: Vec<_> = region.members.iter().collect();
    Some(format!("{} is not a label of the region {}, which has {members:?}", region.output, region.name))
}

/// Finds a region within a later one, which overwrites all of its voxels.
fn overwritten(regions: &[Region]) -> Option<String> {
    regions.iter().enumerate().find_map(|(index, region)| {
        let later = regions[index + 1..].iter().find(|later| later.members.is_superset(&region.members))?;
        Some(format!("the region {} is overwritten by the later region {}, which contains it", region.name, later.name))
    })
}

/// Finds a label that two regions enter, unless the regions can be told apart all the same.
fn ambiguous_value(regions: &[Region]) -> Option<String> {
    let (index, region) = regions
        .iter()
        .enumerate()
        .find(|(index, region)| regions[..*index].iter().any(|r| r.output == region.output))?;
    let other = regions[..index].iter().find(|other| other.output == region.output)?;
    let labels: BTreeSet<i16> = regions.iter().flat_map(|region| region.members.iter().copied()).collect();
    let shown = |label: i16| regions.iter().rfind(|region| region.members.contains(&label)).map(|region| region.output);
    let is_kept = |region: &Region| {
        labels.iter().all(|label| {
            let is_shown = shown(*label).is_some_and(|output| region.members.contains(&output));
            is_shown == region.members.contains(label)
        })
    };
    match regions.iter().all(is_kept) {
        true => None,
        false => Some(format!("{} stands for both {} and {}", region.output, other.name, region.name)),
    }
}

/// Names an order that works.
fn remedy(regions: &[Region]) -> String {
    let listed: Vec<&Region> = regions.iter().collect();
    if let Some(order) = working_order(&listed) {
        return format!("use {order:?}");
    }
    let mut sorted = listed;
    // A region comes before those that it contains.
    sorted.sort_by_key(|region| std::cmp::Reverse(region.members.len()));
    match working_order(&sorted) {
        Some(order) => {
            let names: Vec<&str> = sorted.iter().map(|region| region.name).collect();
            format!("list the regions in labels in the order {} and use {order:?}", names.join(", "))
        }
        None => "each region needs a label that no later region contains".to_owned(),
    }
}

/// Labels that show the regions in this order: for each, its lowest label that no later region contains.
fn working_order(regions: &[&Region]) -> Option<Vec<i16>> {
    let label = |index: usize| {
        let later = &regions[index + 1..];
        regions[index].members.iter().copied().find(|label| !later.iter().any(|region| region.members.contains(label)))
    };
    (0..regions.len()).map(label).collect()
}

#[cfg(test)]
mod tests {
    use crate::dataset::DatasetJson;

    fn problem(labels: &str, order: &str) -> Option<String> {
        let json = format!(
            r#"{{"channel_names": {{"0": "MR"}}, "numTraining": 1, "file_ending": ".nii",
            "labels": {{"background": 0, {labels}}}, "regions_class_order": {order}}}"#
        );
        let json: DatasetJson = serde_json::from_str(&json).unwrap();
        json.order_problem()
    }

    const NESTED: &str = r#""whole": [1, 2, 3], "core": [2, 3], "enhancing": 3"#;

    #[test]
    fn orders_that_work_are_accepted() {
        assert_eq!(problem(NESTED, "[1, 2, 3]"), None);
        assert_eq!(problem(r#""whole": [1, 2], "core": 2"#, "[1, 2]"), None);
        // The whole is never shown, but all of its labels are.
        assert_eq!(problem(r#""whole": [1, 2], "a": 1, "b": 2"#, "[1, 1, 2]"), None);
        assert_eq!(problem(r#""a": 1, "b": 2"#, "[5, 6]"), None, "classes have no order");
    }

    #[test]
    fn orders_that_cannot_work_are_refused_with_one_that_does() {
        for (labels, order, defect, remedy) in [
            (NESTED, "[3, 2, 1]", "1 is not a label of the region enhancing", "use [1, 2, 3]"),
            (r#""whole": [1, 2], "core": 2"#, "[2, 1]", "1 is not a label of the region core", "use [1, 2]"),
            (r#""whole": [1, 2], "core": 2"#, "[2, 2]", "2 stands for both whole and core", "use [1, 2]"),
            (
                r#""core": 2, "whole": [1, 2]"#,
                "[2, 1]",
                "core is overwritten by the later region whole",
                "in the order whole, core and use [1, 2]",
            ),
            (r#""a": [1, 2], "b": [1, 2]"#, "[1, 2]", "a is overwritten by the later region b", "each region needs"),
        ] {
            let found = problem(labels, order).unwrap_or_default();
            assert!(found.contains(defect) && found.contains(remedy), "{labels} {order}: {found}");
        }
    }
}
