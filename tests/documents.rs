//! The documents for people who change this crate name files and tests that exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

const DOCUMENTS: &[&str] =
    &["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md"];

#[test]
fn every_file_and_every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for folder in ["src", "tests"] {
        collect(&root.join(folder), &mut sources);
    }
    let mut wrong = Vec::new();
    for document in DOCUMENTS {
        let Ok(text) = fs::read_to_string(root.join(document)) else {
            wrong.push(format!("there is no {document}"));
            continue;
        };
        for line in text.lines() {
            // What stands between backticks: a path, and after it perhaps a test of that file.
            let mut file = None;
            for word in line.split('`').skip(1).step_by(2) {
                let is_path = ["src/", "tests/", "examples/", "benches/", "docs/"]
                    .iter()
                    .any(|at| word.starts_with(at));
                let name = |c: char| c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit();
                if is_path && !word.contains([' ', '*', '…']) && !word.contains("ENGINE") {
                    file = word.ends_with(".rs").then(|| root.join(word));
                    if !root.join(word).exists() {
                        wrong.push(format!("{document}: there is no {word}"));
                    }
                } else if word.matches('_').count() >= 3 && word.chars().all(name) {
                    let function = |text: &str| {
                        text.contains(&format!("fn {word}("))
                            || text.contains(&format!("fn {word}<"))
                    };
                    let is_there = match file
                        .take()
                        .filter(|_| line.contains(&format!(": `{word}`")))
                    {
                        Some(file) => fs::read_to_string(file).is_ok_and(|text| function(&text)),
                        None => sources.iter().any(|(_, text)| function(text)),
                    };
                    if !is_there {
                        wrong.push(format!("{document}: there is no test {word}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn collect(folder: &Path, sources: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push((path.clone(), fs::read_to_string(path).unwrap()));
        }
    }
}
