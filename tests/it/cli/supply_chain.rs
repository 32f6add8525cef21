//! Dependencies of the programs: only crates from crates.io under licenses that `deny.toml` allows, all of them in the
//! bill of materials. Servers listen on loopback addresses unless configured otherwise.
//!
//! `make deny` runs the same checks with cargo-deny, and checks for known vulnerabilities, whose list has to be
//! downloaded.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use nnunet_dist::cli::Cli;
use serde_json::Value;
use spdx::{Expression, LicenseReq, Licensee, ParseMode};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn table(path: &str) -> toml::Table {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    text.parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn strings(value: &toml::Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// The crates that are compiled for Linux, including those of tests, with the features that tests use: name with
/// version, license.
fn compiled() -> Vec<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--workspace", "--features", "nnunet-dist/cuda", "--edges", "normal,build,dev"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--prefix", "none", "--format", "{p}|{l}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: HashSet<&str> = text.lines().filter_map(|line| line.split(" (*)").next()).collect();
    lines.into_iter().filter_map(|line| line.split_once('|')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

/// True if a license requirement, with its exception if any, is allowed.
fn is_allowed(allowed: &[Licensee], requirement: &LicenseReq) -> bool {
    allowed.iter().any(|licence| licence.satisfies(requirement))
}

#[test]
fn every_license_is_allowed() {
    let deny = table("deny.toml");
    let allowed = strings(&deny["licenses"]["allow"]);
    let allowed: Vec<Licensee> = allowed.iter().map(|licence| Licensee::parse(licence).unwrap()).collect();
    let packages = compiled();
    assert!(packages.len() > 300, "only {} crates", packages.len());
    let refused = packages.iter().filter_map(|(name, licence)| {
        // Old manifests write MIT/Apache-2.0.
        let expression = Expression::parse_mode(licence, ParseMode::LAX);
        let is_fine = expression.is_ok_and(|expression| expression.evaluate(|wanted| is_allowed(&allowed, wanted)));
        (!is_fine).then(|| format!("{name}: {licence}"))
    });
    let refused: Vec<String> = refused.collect();
    assert!(refused.is_empty(), "licences that deny.toml does not allow:\n{}", refused.join("\n"));
}

#[test]
fn a_license_that_is_not_allowed_is_found() {
    let allowed = [Licensee::parse("MIT").unwrap(), Licensee::parse("Apache-2.0").unwrap()];
    let fits =
        |text| Expression::parse_mode(text, ParseMode::LAX).unwrap().evaluate(|wanted| is_allowed(&allowed, wanted));
    assert!(fits("MIT/Apache-2.0") && fits("GPL-3.0-only OR MIT") && fits("MIT AND Apache-2.0"));
    assert!(!fits("GPL-3.0-only") && !fits("MIT AND ISC") && !fits("Apache-2.0 WITH LLVM-exception"));
}

#[test]
fn every_crate_comes_from_crates_io() {
    let deny = table("deny.toml");
    let registries = strings(&deny["sources"]["allow-registry"]);
    assert_eq!(registries, ["https://github.com/rust-lang/crates.io-index"]);
    assert!(deny["sources"].get("allow-git").is_none());
    for path in ["Cargo.lock", "tests/fuzz/Cargo.lock"] {
        let lock = table(path);
        for package in lock["package"].as_array().unwrap() {
            let name = package["name"].as_str().unwrap();
            match package.get("source").map(|source| source.as_str().unwrap()) {
                Some(source) => {
                    let registry = source.strip_prefix("registry+").unwrap_or(source);
                    assert!(registries.iter().any(|each| each == registry), "{path}: {name} is from {source}");
                    assert_eq!(package["checksum"].as_str().map(str::len), Some(64), "{path}: {name}");
                }
                None => assert!(name.starts_with("nnunet-") || name == "gpu-tests", "{path}: {name} is from nowhere"),
            }
        }
    }
}

#[test]
fn the_bill_of_materials_lists_all_crates_of_the_programs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bill.json");
    let status = Command::new(root().join("scripts/sbom")).arg(&path).env("CARGO", env!("CARGO")).status().unwrap();
    assert!(status.success());
    let bill: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!((bill["bomFormat"].as_str(), bill["specVersion"].as_str()), (Some("CycloneDX"), Some("1.5")));

    let lock = table("Cargo.lock");
    let sums: HashMap<(String, String), String> = lock["package"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|package| {
            let text = |key| Some(package.get(key)?.as_str()?.to_owned());
            Some(((text("name")?, text("version")?), text("checksum")?))
        })
        .collect();
    let components = bill["components"].as_array().unwrap();
    let text = |component: &Value, key: &str| component[key].as_str().unwrap().to_owned();
    for component in components {
        let key = (text(component, "name"), text(component, "version"));
        assert!(component["licenses"][0]["expression"].is_string(), "{key:?} has no licence");
        assert_eq!(component["hashes"][0]["content"].as_str(), sums.get(&key).map(String::as_str), "{key:?}");
    }
    let names: HashSet<String> = components.iter().map(|component| text(component, "name")).collect();
    for name in ["nnunet-dist", "nnunet-launch", "burn", "burn-flex", "mpi", "clap", "shlex"] {
        assert!(names.contains(name), "no {name}");
    }
    for name in ["proptest", "assert_cmd", "bindgen", "burn-cuda", "burn-rocm"] {
        assert!(!names.contains(name), "{name} is in no program");
    }
    // Each component is a dependency of a listed one.
    let references: HashSet<&str> = components.iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
    let needed: HashSet<&str> = bill["dependencies"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|entry| entry["dependsOn"].as_array().unwrap().iter().map(|item| item.as_str().unwrap()))
        .collect();
    assert_eq!(references, needed);
}

#[test]
fn addresses_to_listen_on_are_loopback_unless_given() {
    let cli = Cli::command();
    let mut found = Vec::new();
    for command in cli.get_subcommands() {
        for default in command.get_arguments().flat_map(|argument| argument.get_default_values()) {
            if let Some(address) = default.to_str().and_then(|text| text.parse::<SocketAddr>().ok()) {
                assert!(address.ip().is_loopback(), "{} listens on {address}", command.get_name());
                found.push(command.get_name());
            }
        }
    }
    assert!(found.contains(&"serve"), "{found:?}");
}

/// Only the heartbeat server listens on all interfaces, and accepts only peers with the token of the job.
#[test]
fn nothing_else_listens_on_all_interfaces() {
    fn sources(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]").next().unwrap_or_default();
                if ["UNSPECIFIED", "\"0.0.0.0", "\"[::]"].iter().any(|word| text.contains(word)) {
                    found.push(path.strip_prefix(root()).unwrap().to_string_lossy().into_owned());
                }
            }
        }
    }
    let mut found = Vec::new();
    sources(&root().join("src"), &mut found);
    sources(&root().join("launcher/src"), &mut found);
    assert_eq!(found, ["src/comm/distributed/health/heartbeat.rs"]);
}
