//! Checks that the documents for developers name existing files, tests and methods.

use std::{
    fs,
    path::{Path, PathBuf},
};

const DOCUMENTS: &[&str] =
    &["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md"];
const FOLDERS: [&str; 7] = ["src/", "tests/", "examples/", "benches/", "docs/", "gateway/", "ops/"];

#[test]
fn every_file_and_every_test_that_is_named_exists() {
    let sources = sources();
    let mut wrong = Vec::new();
    for (document, line) in lines() {
        // Between backticks: a path, and after it perhaps `: ` and a test of that file.
        let mut file = None;
        for word in line.split('`').skip(1).step_by(2) {
            let is_path = FOLDERS.iter().any(|folder| word.starts_with(folder));
            if is_path && !word.contains([' ', '*', '…']) && !word.contains("ENGINE") {
                file = word.ends_with(".rs").then(|| root().join(word));
                if !root().join(word).exists() {
                    wrong.push(format!("{document}: there is no {word}"));
                }
            } else if word.matches('_').count() >= 3 && word.chars().all(is_of_a_name) {
                let file = file.take().filter(|_| line.contains(&format!(": `{word}`")));
                let mut places = sources
                    .iter()
                    .filter(|(path, _)| file.as_ref().is_none_or(|file| file == path));
                if !places.any(|(_, text)| has_function(text, word)) {
                    wrong.push(format!("{document}: there is no test {word}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Checks each `Type::method`, in pictures too: one file has the type, or an `impl` of it, and the
/// function.
#[test]
fn every_method_that_is_named_exists() {
    let sources = sources();
    let mut wrong = Vec::new();
    for (document, line) in lines() {
        for (at, _) in line.match_indices("::") {
            let after = |c: char| !c.is_ascii_alphanumeric() && c != '_';
            let owner = line[..at].rsplit(after).next().unwrap();
            let method = line[at + 2..].split(after).next().unwrap();
            let is_method = method.starts_with(|c: char| c.is_ascii_lowercase());
            if !is_method || !owner.starts_with(|c: char| c.is_ascii_uppercase()) {
                continue;
            }
            let kinds = ["struct", "enum", "trait", "impl", "for", ">"];
            let is_owner = |text: &str| {
                kinds.iter().any(|kind| {
                    let name = format!("{kind} {owner}");
                    text.match_indices(&name)
                        .any(|(at, _)| text[at + name.len()..].starts_with([' ', '<', '(', ';']))
                })
            };
            if !sources.iter().any(|(_, text)| is_owner(text) && has_function(text, method)) {
                wrong.push(format!("{document}: there is no {owner}::{method}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Each case of a contract quotes promises that the documentation of its trait makes.
#[test]
fn every_promise_that_a_case_quotes_is_made() {
    let contracts = [
        ("src/store/binding_store.rs", "src/testing/store"),
        ("src/hints.rs", "src/testing/hints"),
    ];
    let mut wrong = Vec::new();
    for (made, cases) in contracts {
        let made = fs::read_to_string(root().join(made)).unwrap();
        let made = plain(&comments(&made).join("\n"));
        for (path, text) in
            sources().iter().filter(|(path, _)| path.starts_with(root().join(cases)))
        {
            for case in text.split("\npub async fn ").map(|after| after.rsplit("\n}\n").next()) {
                let quotes = comments(case.unwrap_or_default()).join("\n");
                let quotes: Vec<_> = quotes
                    .split("\n\n")
                    .filter_map(|paragraph| paragraph.strip_prefix("> "))
                    .map(|quote| plain(&quote.replace("\n> ", "\n")))
                    .collect();
                wrong.extend(quotes.iter().filter(|quote| !made.contains(&**quote)).map(|quote| {
                    format!("{}: the documentation does not promise {quote:?}", path.display())
                }));
            }
            let cases = text.split("\n}\n").filter(|item| item.contains("\npub async fn "));
            wrong.extend(
                cases
                    .filter(|item| !item.contains("\n/// > "))
                    .map(|item| format!("{}: quotes no promise: {item}", path.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The text of the doc comments.
fn comments(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim_start);
    lines.filter_map(|line| line.strip_prefix("///")).map(|line| line.trim_start()).collect()
}

/// Returns the text on one line, without the syntax of links.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("](") {
        plain.push_str(&rest[..at]);
        rest = rest[at..].split_once(')').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain.replace(['[', ']'], "").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Links to documentation that is not published yet cannot be followed, but their items exist.
#[test]
fn every_link_of_the_readme_leads_somewhere() {
    const PUBLISHED: &str = "https://docs.rs/tower-bound-agent/latest/tower_bound_agent/";
    let sources = sources();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let online = fs::read_to_string(root().join("src/guide/links_online.md")).unwrap();
    let mut wrong = Vec::new();
    for link in readme.split(PUBLISHED).skip(1).chain(online.split(PUBLISHED).skip(1)) {
        let link = link.split(|c: char| c == ')' || c.is_whitespace()).next().unwrap();
        let is_there = match link.strip_prefix("guide/") {
            Some("index.html") => true,
            Some(page) => {
                root().join("src/guide").join(page.replace("/index.html", ".md")).exists()
            }
            None => {
                let (item, method) = link.split_once("#method.").unwrap_or((link, ""));
                let item = item.rsplit('/').next().unwrap().strip_suffix(".html").unwrap();
                let declaration = format!("pub {}", item.replacen('.', " ", 1));
                sources.iter().any(|(_, text)| {
                    text.match_indices(&declaration).any(|(at, _)| {
                        !text[at + declaration.len()..].starts_with(char::is_alphanumeric)
                    })
                }) && (method.is_empty()
                    || sources.iter().any(|(_, text)| has_function(text, method)))
            }
        };
        if !is_there {
            wrong.push(link.to_owned());
        }
    }
    for link in readme.split("](").skip(1).chain(readme.split("src=\"").skip(1)) {
        let link = link.split([')', '"']).next().unwrap();
        if !link.starts_with("https:") && !root().join(link).exists() {
            wrong.push(link.to_owned());
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_page_of_the_guide_is_linked_from_the_front_page() {
    let labels = |file: &str| -> Vec<String> {
        let text = fs::read_to_string(root().join("src/guide").join(file)).unwrap();
        text.lines().filter_map(|line| Some(line.split_once("]: ")?.0.to_owned() + "]")).collect()
    };
    let (local, online) = (labels("links.md"), labels("links_online.md"));
    assert_eq!(local, online, "the same pages are linked with the feature full and without it");
    let front = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let pages = fs::read_dir(root().join("src/guide")).unwrap();
    for page in pages.map(|page| page.unwrap().path()) {
        let name = page.file_stem().unwrap().to_str().unwrap();
        if !name.starts_with("links") {
            let label = format!("[{name}]");
            assert!(local.contains(&label), "src/guide/links.md has no {label}");
            assert!(front.contains(&label), "src/lib.rs does not link {label}");
        }
    }
}

#[test]
fn code_in_the_readme_and_the_guide_is_at_most_100_columns_wide() {
    let mut files = vec![root().join("README.md")];
    files.extend(fs::read_dir(root().join("src/guide")).unwrap().map(|page| page.unwrap().path()));
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("```").skip(1).step_by(2).flat_map(str::lines);
        let wide = code.filter(|line| line.chars().count() > 100);
        wrong.extend(wide.map(|line| format!("{}: {line}", file.display())));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn lines() -> Vec<(&'static str, String)> {
    let of = |document: &&'static str| {
        let text = fs::read_to_string(root().join(document)).expect(document);
        text.lines().map(|line| (*document, line.to_owned())).collect::<Vec<_>>()
    };
    DOCUMENTS.iter().flat_map(of).collect()
}

fn is_of_a_name(c: char) -> bool {
    c == '_' || c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn has_function(text: &str, name: &str) -> bool {
    text.contains(&format!("fn {name}(")) || text.contains(&format!("fn {name}<"))
}

fn sources() -> Vec<(PathBuf, String)> {
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
    let mut sources = Vec::new();
    collect(&root().join("src"), &mut sources);
    collect(&root().join("tests"), &mut sources);
    sources
}
