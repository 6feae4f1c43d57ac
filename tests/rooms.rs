//! Checks which part of the crate imports which: the tables are those of `ARCHITECTURE.md`.
//!
//! A *room* is a set of top-level modules of `src/` with everything below them. A room *imports*
//! another one if a path in it begins with `crate::` and names something there, directly or through
//! the re-exports of `lib.rs`. Unit tests do not count.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Room, its modules, and what it may import: only rooms above it, so that there is no circle.
const ROOMS: &[(&str, &str, &str)] = &[
    (
        "vocabulary",
        "answer binding error id local observer outcome request resolution settings snapshot wrong_agent",
        "",
    ),
    (
        "leaves",
        "backoff clock compact_instant gate jitter log metrics pulse single_flight spans sync tasks waiters",
        "vocabulary",
    ),
    ("store", "store", "vocabulary leaves"),
    ("hints", "hints", "vocabulary leaves store"),
    ("workspace", "workspace", "vocabulary leaves"),
    ("cache", "cache", "vocabulary leaves workspace"),
    ("state", "resolver state", "vocabulary leaves store hints workspace cache"),
    ("repair", "repair", "vocabulary leaves store hints workspace cache state"),
    ("replicas", "replicas", "vocabulary leaves store hints workspace cache state"),
    ("bound", "bound", "vocabulary cache state replicas"),
    ("dial", "dial", "vocabulary leaves workspace cache state replicas bound"),
    (
        "faces",
        "bindings builder layer service",
        "vocabulary leaves store hints workspace cache state replicas bound dial",
    ),
    ("http", "http", "vocabulary leaves state bound dial faces"),
    ("testing", "testing", "vocabulary store hints bound faces"),
    ("guide", "guide", "vocabulary store hints bound faces http testing"),
];

/// Exceptions: imports of single modules from a room below, which make rooms form a circle. Do not
/// add any.
const CIRCLES: &[(&str, &str)] = &[];

#[test]
fn each_room_imports_what_the_table_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("src");
    let lib = code(&src.join("lib.rs"));
    let described = fs::read_to_string(src.with_file_name("ARCHITECTURE.md")).unwrap();
    let (mut wrong, mut used) = (BTreeSet::new(), BTreeSet::new());
    for file in files(&src).iter().filter(|file| !file.ends_with("lib.rs")) {
        let path = file.strip_prefix(&src).unwrap().with_extension("");
        let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
        let (from, depth) = (parts[0], parts.iter().filter(|part| **part != "mod").count());
        let Some((room, _, may)) = room_of(from) else {
            wrong.insert(format!("{from} is in no room"));
            continue;
        };
        used.insert(format!("module {from}"));
        if parts.contains(&"tests") {
            continue;
        }
        let text = code(file);
        if text.contains(&format!("\nuse {}", "super::".repeat(depth))) {
            wrong.insert(format!(
                "{}: write `crate::` where `super::` is the crate's root",
                path.display()
            ));
        }
        for name in names_after_crate(&text) {
            let to =
                if room_of(&name).is_some() { Some(&*name) } else { reexported_from(&lib, &name) };
            let Some((to, (to_room, ..))) = to.and_then(|to| Some((to, room_of(to)?))) else {
                wrong.insert(format!("{}: `crate::{name}` is in no room", path.display()));
                continue;
            };
            if may.split(' ').any(|may| may == *to_room) {
                used.insert(format!("{room} imports {to_room}"));
            } else if CIRCLES.contains(&(from, to)) {
                used.insert(format!("{from} imports {to}"));
            } else if room != to_room {
                wrong.insert(format!(
                    "{}: {room} must not import {to_room} (`crate::{name}`)",
                    path.display()
                ));
            }
        }
    }
    let mut entries: Vec<String> =
        CIRCLES.iter().map(|(from, to)| format!("{from} imports {to}")).collect();
    for (index, (room, modules, may)) in ROOMS.iter().enumerate() {
        entries.extend(modules.split(' ').map(|module| format!("module {module}")));
        entries.extend(may.split_whitespace().map(|may| format!("{room} imports {may}")));
        let line =
            format!("| {room} | {modules} | {} |", if may.is_empty() { "nothing" } else { may });
        assert!(described.contains(&line), "ARCHITECTURE.md has no line {line}");
        let is_above = |may| ROOMS[..index].iter().any(|(above, ..)| *above == may);
        assert!(
            may.split_whitespace().all(is_above),
            "{room} may import only what is above it in the table"
        );
    }
    wrong.extend(
        entries
            .into_iter()
            .filter(|entry| !used.contains(entry))
            .map(|entry| format!("unused: {entry}")),
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Rooms whose modules are checked for circles among themselves.
const WITHOUT_CIRCLES_INSIDE: &[&str] = &["http", "store"];

#[test]
fn modules_inside_a_room_form_no_circle() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("src");
    let mut circles = Vec::new();
    for room in WITHOUT_CIRCLES_INSIDE {
        let modules = modules_of(&src, room);
        let imports: BTreeMap<&str, BTreeSet<String>> =
            modules.keys().map(|module| (&**module, imports_of(module, &modules))).collect();
        assert!(imports.values().any(|imports| !imports.is_empty()), "nothing was found in {room}");
        // Remove each module that imports none of those that are left, or that none of them
        // imports: what remains are circles, and modules between two circles.
        let mut left: BTreeSet<&str> = imports.keys().copied().collect();
        while let Some(outside) = left.iter().copied().find(|module| {
            imports[module].iter().all(|to| !left.contains(&**to))
                || left.iter().all(|from| !imports[from].contains(*module))
        }) {
            left.remove(outside);
        }
        for module in &left {
            let to: Vec<_> = imports[module].iter().filter(|to| left.contains(&***to)).collect();
            circles.push(format!("{module} imports {to:?}"));
        }
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

fn room_of(module: &str) -> Option<&'static (&'static str, &'static str, &'static str)> {
    ROOMS.iter().find(|(_, modules, _)| modules.split(' ').any(|of| of == module))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The text without comments and without the unit tests that end it.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap().to_owned() + "\n").collect()
}

fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| *c == '_' || c.is_alphanumeric()).collect()
}

/// The first name of each path that begins with `crate::`, also of each path in `crate::{…}`.
fn names_after_crate(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    // Not hidden macros: the root has them because they are exported.
    for path in text.split("crate::").skip(1).filter(|path| !path.starts_with("__")) {
        let (mut depth, mut after_name) = (0, false);
        for (at, c) in path.char_indices() {
            if depth <= 1 && !after_name && (c.is_alphabetic() || c == '*') {
                names.push(word(&path[at..]));
                after_name = true;
            }
            depth += i32::from(c == '{') - i32::from(c == '}');
            after_name &= !(depth == 1 && c == ',');
            if depth == 0 && (after_name || c == '}') {
                break;
            }
        }
    }
    names
}

/// The module from which `lib.rs` re-exports a name.
fn reexported_from<'a>(lib: &'a str, name: &str) -> Option<&'a str> {
    lib.split("pub use ").skip(1).find_map(|item| {
        let (module, names) = item.split(';').next()?.split_once("::")?;
        names.split(['{', ',', '}']).any(|of| of.trim() == name).then_some(module)
    })
}

/// The modules of a room, unit tests left out, and the paths in their code.
type Modules = BTreeMap<String, BTreeSet<Vec<String>>>;

fn modules_of(src: &Path, room: &str) -> Modules {
    let of_room = |path: &Path| path.starts_with(room) || path == Path::new(&format!("{room}.rs"));
    let modules = files(src).into_iter().filter_map(|file| {
        let path = file.strip_prefix(src).unwrap();
        let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
        let module = parts.join("::").trim_end_matches(".rs").trim_end_matches("::mod").to_owned();
        (of_room(path) && !module.ends_with("::tests"))
            .then(|| (module, paths_in(&code(&file).replace("pub(in crate::", ""))))
    });
    modules.collect()
}

/// The modules that a module imports. A name that a module re-exports counts as an import of the
/// module that defines it.
fn imports_of(module: &str, modules: &Modules) -> BTreeSet<String> {
    let import = |path: &Vec<String>| resolve(module, path, modules, 0);
    modules[module].iter().filter_map(import).filter(|to| to != module).collect()
}

/// Follows a path from a module to the module that defines its last name, if that is in the room.
fn resolve(from: &str, path: &[String], modules: &Modules, depth: usize) -> Option<String> {
    let room = from.split("::").next()?;
    let mut names = path.iter().map(|name| &**name).peekable();
    let mut at = from.to_owned();
    match *names.peek()? {
        "crate" => {
            names.next();
            names.next_if_eq(&room)?;
            at = room.to_owned();
        }
        "self" => {
            names.next();
        }
        "super" => {
            while names.next_if_eq(&"super").is_some() {
                at = at.rsplit_once("::")?.0.to_owned();
            }
        }
        // A path that begins with a module of this one, or with a module that was imported.
        first if modules.contains_key(&format!("{at}::{first}")) => {}
        first => {
            let alias = modules[from].iter().find(|other| {
                other.len() > 1
                    && other.last().is_some_and(|last| last == first)
                    && other[..] != *path
            })?;
            let module = (depth < 4).then(|| resolve(from, alias, modules, depth + 1))??;
            names.next();
            // Only modules can be followed by more names that lead to other modules.
            if !module.ends_with(&format!("::{first}")) {
                return None;
            }
            at = module;
        }
    }
    for name in names.by_ref() {
        let inner = format!("{at}::{name}");
        if modules.contains_key(&inner) {
            at = inner;
            continue;
        }
        let reexport = modules[&at]
            .iter()
            .find(|other| other.len() > 1 && other.last().is_some_and(|last| last == name));
        if depth < 4
            && at != from
            && let Some(target) = reexport.and_then(|other| resolve(&at, other, modules, depth + 1))
        {
            at = target;
        }
        break;
    }
    Some(at)
}

/// Every path of at least two names in a text; `a::{b, c}` is `a::b` and `a::c`.
fn paths_in(text: &str) -> BTreeSet<Vec<String>> {
    let mut paths = BTreeSet::new();
    // The names before each brace that is open.
    let (mut open, mut path): (Vec<Vec<String>>, Vec<String>) = (vec![], vec![]);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let name = word(rest);
        if !name.is_empty() && !c.is_whitespace() {
            rest = &rest[name.len()..];
            path.push(name);
            if let Some(after) = rest.strip_prefix("::") {
                rest = after;
                if rest.starts_with('{') {
                    rest = &rest[1..];
                    open.push(path.clone());
                }
                if !rest.starts_with(|c: char| c == '_' || c.is_alphabetic()) {
                    path = open.last().cloned().unwrap_or_default();
                }
                continue;
            }
            if path.len() > 1 {
                // `a::{self}` is `a`.
                path.pop_if(|last| last == "self");
                paths.insert(path);
            }
            path = open.last().cloned().unwrap_or_default();
            continue;
        }
        match c {
            '}' => {
                open.pop();
                path = open.last().cloned().unwrap_or_default();
            }
            // A brace of code: it has no path.
            '{' => {
                open.push(vec![]);
                path = vec![];
            }
            _ => {}
        }
        rest = &rest[c.len_utf8()..];
    }
    paths
}
