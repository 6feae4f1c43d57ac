//! The configuration: its mistakes have a place.

use crate::scene::{Gateway, Platform, configuration, program};
use bound_agent_gateway::Config;
use std::fs;

/// Returns the exit code, and what is printed.
fn check(text: &str, variables: &[(&str, &str)]) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.toml");
    fs::write(&file, text).unwrap();
    let output = program()
        .args(["--check", "--config"])
        .arg(&file)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap().replace(&file.display().to_string(), "FILE");
    (output.status.code().unwrap(), said.trim_end().to_owned())
}

const ENOUGH: &str = "store.url = \"sqlite:x\"\nresolver.url = \"http://platform/{workspace}\"\n";

#[test]
fn every_mistake_of_a_file_has_its_line() {
    let table = [
        ("sever.listen = 5", "FILE:3: unknown field `sever`, expected one of `server`, "),
        ("\n[server]\nlisten = \"a\"", "FILE:5: invalid socket address syntax"),
        (
            "[server]\n\nlisen = \"127.0.0.1:80\"",
            "FILE:5: unknown field `lisen`, expected one of `listen`, ",
        ),
        ("[server.tls]\ncertificate = \"a\"", "FILE:3: missing field `key`"),
        ("[server", "FILE:3: "),
        (
            "settings.dial_timeout = \"soon\"",
            "FILE:3: invalid value: string \"soon\", expected a duration such as",
        ),
        (
            "settings.dial_timeout = 5",
            "FILE:3: invalid type: integer `5`, expected a duration such as",
        ),
        (
            "agents.protocol = \"http3\"",
            "FILE:3: unknown variant `http3`, expected `http1` or `http2`",
        ),
        (
            "agents.tls = { ca = \"a\", name = \"a.b\" }",
            "FILE:3: the name has no {agent}: every agent would be right",
        ),
        ("agents.tls = { ca = \"a\", name = \"{agent} b\" }", "FILE:3: is no DNS name"),
        (
            "authorize.url = \"ftp://a\"",
            "FILE:3: the URL must begin with http:// or https:// and name a host",
        ),
        ("authorize.headers = [\"a b\"]", "FILE:3: \"a b\" is no name of a header"),
        (
            "route.session = { path = \"sessions\" }",
            "FILE:3: the prefix of a path begins and ends with a slash",
        ),
        (
            "route.session = { cookie = \"a\" }",
            "FILE:3: unknown variant `cookie`, expected one of `path`, `header`, `host`",
        ),
        ("server.names = [\"a b\"]", "FILE:3: \"a b\" is no name of a host"),
        (
            "server.max_connections = 0",
            "FILE:3: invalid value: integer `0`, expected a nonzero u32",
        ),
        ("authorize.timeout = \"1s\"", "authorize: one of url and tokens must be set"),
        (
            "authorize = { url = \"http://a\", tokens = [\"a\"] }",
            "authorize: one of url and tokens must be set",
        ),
        (
            "agents.tls = { ca = \"a\", key = \"b\" }",
            "agents.tls: certificate and key are set together",
        ),
        ("server.body_timeout = \"0s\"", "server: a timeout must not be zero"),
        ("log.filter = \"a=b=c\"", "log.filter: is no list of levels"),
        (
            "server.tls = { certificate = \"/no/file\", key = \"/no/file\" }",
            "/no/file: cannot be read: No such file",
        ),
    ];
    for (mistake, expected) in table {
        let (code, said) = check(&format!("{ENOUGH}{mistake}"), &[]);
        let said = said
            .strip_prefix("bound-agent-gateway: ")
            .unwrap_or_else(|| panic!("{mistake}: {said}"));
        assert!(said.starts_with(expected), "{mistake}: {said}");
        assert_eq!(code, 2, "{mistake}");
    }
    for (text, expected) in [
        ("resolver.url = \"http://a/{workspace}\"", "store.url: is missing"),
        ("store.url = \"sqlite:a\"", "resolver.url: is missing"),
        (
            "store.url = \"redis://a\"",
            "FILE:1: a URL of a store begins with sqlite:, postgres: or mysql:",
        ),
        ("store.url = \"sqlite::memory:\"", "FILE:1: sqlite: needs the path of a file"),
        ("resolver.url = \"http://a/\"", "FILE:1: the URL has no {workspace}"),
        (
            "resolver.url = \"http://{workspace}/\"",
            "FILE:1: {workspace} belongs into the path or the query",
        ),
    ] {
        let expected = format!("bound-agent-gateway: {expected}");
        assert_eq!(check(text, &[]), (2, expected), "{text}");
    }
    assert_eq!(check(ENOUGH, &[]), (0, "the configuration is valid".into()));
}

/// The file that documents every key is read, and what it says is the default.
#[test]
fn the_documented_configuration_is_the_default() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/gateway.toml");
    let text = fs::read_to_string(file).unwrap();
    assert_eq!(check(&text, &[]), (0, "the configuration is valid".into()));
    let load = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.toml");
        fs::write(&file, text).unwrap();
        format!("{:#?}", Config::load(Some(&file), []).unwrap())
    };
    let required = |line: &&str| line.starts_with('[') || line.starts_with("url = ");
    let least: String = text.lines().filter(required).map(|line| format!("{line}\n")).collect();
    assert_eq!(load(&text), load(&least));
    // Every key is there, also those that are commented out.
    let all = text.replace("# [", "[").lines().map(uncommented).collect::<String>();
    let (code, said) = check(&all, &[]);
    assert_eq!(
        (code, &*said),
        (2, "bound-agent-gateway: authorize: one of url and tokens must be set")
    );
    for key in fields() {
        let is_there = all.lines().any(|line| line.starts_with(&format!("{key} = ")));
        assert!(
            is_there || all.contains(&format!("[{key}]")) || all.contains(&format!(".{key}]")),
            "{key}"
        );
    }
}

fn uncommented(line: &str) -> String {
    let key = line.strip_prefix("# ").filter(|line| line.contains(" = "));
    format!("{}\n", key.unwrap_or(line))
}

/// The names of the fields in the source of the configuration.
fn fields() -> Vec<String> {
    let source = include_str!("../../src/config.rs");
    let fields = source.lines().filter_map(|line| line.strip_prefix("    pub "));
    let names = fields.filter_map(|line| line.split_once(": ")).map(|(name, _)| name.to_owned());
    let names: Vec<_> = names.filter(|name| !name.starts_with("fn ")).collect();
    assert!(names.len() > 40, "{names:?}");
    names
}

#[test]
fn variables_override_the_file_and_are_checked_as_it_is() {
    type Case<'a> = (&'a [(&'a str, &'a str)], i32, &'a str);
    let table: &[Case<'_>] = &[
        (&[("GATEWAY__SERVER__LISTEN", "127.0.0.1:1")], 0, "the configuration is valid"),
        (
            &[("GATEWAY__SERVER__MAX_BODY", "5"), ("GATEWAY__LOG__FORMAT", "json")],
            0,
            "the configuration is valid",
        ),
        (&[("GATEWAY__AUTHORIZE__TOKENS", "[\"5\", \"6\"]")], 0, "the configuration is valid"),
        (&[("GATEWAY__ADMIN__TOKEN", "5")], 0, "the configuration is valid"),
        (&[("GATEWAY_SERVICE_HOST", "10.0.0.1")], 0, "the configuration is valid"),
        (
            &[("GATEWAY__STORE__URL", "redis:")],
            2,
            "bound-agent-gateway: environment variable GATEWAY__STORE__URL: a URL of a store begins with sqlite:, postgres: or mysql:",
        ),
        (
            &[("GATEWAY__SERVER__LISEN", "x")],
            2,
            "bound-agent-gateway: environment variable GATEWAY__SERVER__LISEN: unknown field `lisen`, expected one of",
        ),
        (
            &[("GATEWAY__SERVER__MAX_BODY", "many")],
            2,
            "bound-agent-gateway: environment variable GATEWAY__SERVER__MAX_BODY: invalid type: string \"many\", expected usize",
        ),
        (
            &[("GATEWAY__STORE", "x")],
            2,
            "bound-agent-gateway: environment variable GATEWAY__STORE: invalid type: string \"x\", expected struct Store",
        ),
    ];
    for (variables, code, expected) in table {
        let (ended, said) = check(ENOUGH, variables);
        assert!(said.starts_with(expected), "{variables:?}: {said}");
        assert_eq!(ended, *code, "{variables:?}");
    }
    let all = [
        ("GATEWAY__STORE__URL", "sqlite:x"),
        ("GATEWAY__RESOLVER__URL", "http://platform/{workspace}"),
    ];
    let output = program().arg("--check").envs(all).output().unwrap();
    assert!(output.status.success(), "a file is not needed: {output:?}");
}

#[test]
fn a_wrong_argument_prints_the_usage() {
    for (arguments, code) in
        [(&["--chek"][..], 2), (&["--config"], 2), (&["--help"], 0), (&["--version"], 0)]
    {
        let output = program().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        let is_version = arguments == ["--version"];
        assert_eq!(said.contains("[--config FILE] [--check]"), !is_version, "{said}");
    }
}

#[tokio::test]
async fn an_error_at_startup_ends_the_process_with_its_cause() {
    let platform = Platform::start().await;
    let running = Gateway::start(&platform, "").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.toml");
    let cases = [
        (format!("server.listen = \"{}\"", running.address), "cannot listen on 127.0.0.1:"),
        (
            "store.url = \"sqlite:/no/such/folder/x.db\"".to_owned(),
            "the store: the store cannot be used: ",
        ),
        ("settings.dial_timeout = \"1s\"".to_owned(), "the settings: invalid settings: "),
    ];
    for (key, expected) in cases {
        let name = key.split(' ').next().unwrap();
        let text = configuration(folder.path(), &platform, "");
        let others: String = text
            .lines()
            .filter(|line| !line.starts_with(name))
            .map(|line| format!("{line}\n"))
            .collect();
        fs::write(&file, others + &key).unwrap();
        let output = program().arg("--config").arg(&file).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with(&format!("bound-agent-gateway: {expected}")), "{key}: {said}");
        assert_eq!(output.status.code(), Some(1), "{key}");
    }
}
