//! The manifests of the workspace list every target, and every member has the features of the
//! crate.

use std::{collections::BTreeSet, fs, path::Path};

const MEMBERS: [&str; 3] = ["benches", "examples", "tests"];

/// Cargo's discovery does not reach these folders: a file that is not listed would never run.
#[test]
fn every_target_is_listed_in_its_manifest() {
    let mut wrong = Vec::new();
    for member in MEMBERS {
        let folder = root().join(member);
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.join("Cargo.toml").exists() {
                continue; // a member of its own
            }
            let file = if path.is_dir() { path.join("main.rs") } else { path };
            let name = file.strip_prefix(&folder).unwrap().display();
            let is_target = file.extension().is_some_and(|extension| extension == "rs");
            if is_target && file.exists() && !manifest.contains(&format!("path = \"{name}\"")) {
                wrong.push(format!("{member}/Cargo.toml does not list {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Ensures that `--features` has the same meaning for all members, which may have more features.
#[test]
fn every_member_has_the_features_of_the_crate() {
    let features = |folder: &Path| {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let (_, rest) = manifest.split_once("[features]\n").unwrap();
        let section = rest.split("\n[").next().unwrap();
        let lines = section.lines().filter_map(|line| line.split_once(" = "));
        lines
            .map(|(name, what)| match name {
                "default" | "full" => format!("{name} = {what}"),
                _ => name.to_owned(),
            })
            .collect::<BTreeSet<_>>()
    };
    for member in MEMBERS {
        let missing = &features(root()) - &features(&root().join(member));
        assert!(missing.is_empty(), "{member}/Cargo.toml: {missing:?}");
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
