//! The statements of each store, checked against a file of SQL.
//!
//! The statements are composed from parts. The files `statements.sql` beside them show the result,
//! so that a reader sees the SQL, and a change to it shows in the diff.

use sqlx::SqlStr;
use std::{env, fmt::Write, fs, path::Path};

/// Compares the statements with the file, except those that this store does not run: the feature of
/// another database adds them. With `UPDATE_SQL` in the environment, writes the file.
pub(in crate::store) fn check(file: &str, statements: &[(&str, &SqlStr)], not_run: &[&str]) {
    let mut text =
        "-- Written and checked by `UPDATE_SQL=1 cargo test --features full --lib statements`.\n"
            .to_owned();
    for (name, sql) in statements.iter().filter(|(name, _)| !not_run.contains(name)) {
        write!(text, "\n-- {name}\n{};\n", sql.as_str()).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if env::var_os("UPDATE_SQL").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "the statements differ from {file}; `UPDATE_SQL=1` writes it anew");
}
