//! The crates' dependencies are those of the table in `docs/architecture.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Crate name to the names of the workspace crates that it uses.
type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The workspace's packages that contain the program's code; test packages are left out.
fn arrows_of_cargo() -> Arrows {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let names: BTreeSet<String> = packages.iter().map(|package| text(&package["name"])).collect();
    let used = |package: &Value| {
        let dependencies = package["dependencies"].as_array().expect("a list of dependencies");
        let normal = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
        normal.map(|dependency| text(&dependency["name"])).filter(|name| names.contains(name)).collect()
    };
    let own = packages.iter().filter(|package| package["name"] != "gpu-tests");
    own.map(|package| (text(&package["name"]), used(package))).collect()
}

/// Rows `| crate | folder | contents | uses |` of the page, in which `all above` stands for all crates of earlier rows.
fn arrows_of_the_page(page: &str) -> Arrows {
    let mut arrows = Arrows::new();
    for line in page.lines().filter(|line| line.starts_with("| `nnunet-")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, _, _, uses] = cells[..] else { panic!("four columns expected: {line}") };
        let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
        let uses = match uses {
            "all above" => arrows.keys().cloned().collect(),
            _ => names(uses),
        };
        arrows.insert(names(name).pop_first().expect("a name in backquotes"), uses);
    }
    arrows
}

#[test]
fn crates_depend_on_each_other_as_the_architecture_page_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let page = std::fs::read_to_string(page).expect("docs/architecture.md can be read");
    assert_eq!(arrows_of_cargo(), arrows_of_the_page(&page), "left: Cargo.toml, right: docs/architecture.md");
}

#[test]
fn every_arrow_leads_to_an_earlier_row() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let page = std::fs::read_to_string(page).expect("docs/architecture.md can be read");
    let mut earlier = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| `nnunet-")) {
        let arrows = arrows_of_the_page(line);
        let (name, uses) = arrows.first_key_value().expect("one row");
        assert!(uses.is_subset(&earlier), "{name} uses a crate of a later row");
        earlier.insert(name.clone());
    }
}
