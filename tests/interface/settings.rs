//! The builder: contradictions, defaults, and the meaning of zero.

use std::error::Error as _;
use support::*;
use tokio::time::{Duration, Instant, sleep};
use tower_bound_agent::{
    BoundAgentBuilder, BuildError, DialSession, ErrorKind, LastVerdict, OutcomeKind, Redial,
    RefreshInterval, Repair, RepairMode, Settings,
};

type Set = fn(BoundAgentBuilder) -> BoundAgentBuilder;

const NO: Duration = Duration::ZERO;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn refused(set: impl FnOnce(BoundAgentBuilder) -> BoundAgentBuilder) -> BuildError {
    set(World::new().builder()).build().expect_err("contradictory settings")
}

fn accepted(set: impl FnOnce(BoundAgentBuilder) -> BoundAgentBuilder) {
    set(World::new().builder()).build().expect("settings that go together");
}

/// Asserts that the error names both settings, in its text and in `settings`.
fn names(error: &BuildError, first: &str, second: &str) {
    assert_eq!(error.settings(), [first, second], "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&format!("`{first}`")) && text.contains(&format!("`{second}`")),
        "{text}"
    );
    assert!(error.source().is_none());
}

#[test]
fn the_delay_must_fit_into_the_dial_timeout() {
    for delay in [secs(30), secs(31)] {
        names(
            &refused(|builder| builder.validation_delay(delay)),
            "validation_delay",
            "dial_timeout",
        );
    }
    let error = refused(|builder| builder.dial_timeout(ms(250)));
    names(&error, "validation_delay", "dial_timeout");
    assert!(error.to_string().contains("250ms"), "the values too: {error}");
}

#[test]
fn the_delay_and_a_slow_answer_must_fit_into_the_dial_timeout() {
    names(
        &refused(|builder| builder.validation_delay(secs(25))),
        "resolve_timeout",
        "dial_timeout",
    );
    names(
        &refused(|builder| builder.resolve_timeout(ms(29_750))),
        "resolve_timeout",
        "dial_timeout",
    );
    accepted(|builder| builder.resolve_timeout(ms(29_749)));
    accepted(|builder| builder.validation_delay(ms(24_999)));
}

#[test]
fn a_limit_of_zero_pending_dials_is_refused() {
    assert_eq!(refused(|builder| builder.max_pending_dials(0)).settings()[0], "max_pending_dials");
    accepted(|builder| builder.max_pending_dials(1));
    accepted(|builder| builder.max_pending_dials(usize::MAX));
}

#[test]
fn a_slow_statement_must_fit_into_the_dial_timeout() {
    names(&refused(|builder| builder.store_timeout(secs(30))), "store_timeout", "dial_timeout");
    accepted(|builder| builder.store_timeout(ms(29_999)));
}

#[test]
fn a_read_must_end_before_the_cache_forgets() {
    names(
        &refused(|builder| builder.cache_time_to_idle(secs(5))),
        "cache_time_to_idle",
        "store_timeout",
    );
    accepted(|builder| builder.cache_time_to_idle(ms(5_001)));
}

#[test]
fn the_shortest_interval_must_not_exceed_the_longest() {
    names(
        &refused(|builder| builder.revalidate_every(secs(16))),
        "revalidate_every",
        "revalidate_at_most",
    );
    names(
        &refused(|builder| builder.revalidate_at_most(ms(1_999))),
        "revalidate_every",
        "revalidate_at_most",
    );
    accepted(|builder| builder.revalidate_every(secs(15)));
    accepted(|builder| builder.revalidate_at_most(secs(2)));
}

#[test]
fn settings_may_be_given_in_any_order() {
    accepted(|builder| builder.validation_delay(secs(60)).dial_timeout(secs(120)));
    accepted(|builder| builder.dial_timeout(secs(120)).validation_delay(secs(60)));
}

#[test]
fn time_limits_must_not_be_zero() {
    let zeros: [(&str, Set); 8] = [
        ("refresh_interval", |builder| builder.refresh_interval(NO)),
        ("usage_interval", |builder| builder.usage_interval(NO)),
        ("dial_timeout", |builder| builder.dial_timeout(NO)),
        ("resolve_timeout", |builder| builder.resolve_timeout(NO)),
        ("store_timeout", |builder| builder.store_timeout(NO)),
        ("revalidate_every", |builder| builder.revalidate_every(NO)),
        ("revalidate_at_most", |builder| builder.revalidate_at_most(NO)),
        ("cache_time_to_idle", |builder| builder.cache_time_to_idle(NO)),
    ];
    for (name, set) in zeros {
        let error = refused(set);
        assert_eq!(error.settings()[0], name);
        assert!(error.to_string().contains("zero"), "{error}");
    }
    let error = refused(|builder| builder.cache_capacity(0));
    assert_eq!(error.settings()[0], "cache_capacity");
    accepted(|builder| builder.cache_capacity(1));
    accepted(|builder| builder.validation_delay(NO));
    // `None` means never, not zero.
    accepted(|builder| builder.refresh_interval(None).usage_interval(None));
}

#[test]
fn endless_durations_are_refused_and_do_not_overflow() {
    let endless: [(&str, Set); 9] = [
        ("refresh_interval", |builder| builder.refresh_interval(Duration::MAX)),
        ("usage_interval", |builder| builder.usage_interval(Duration::MAX)),
        ("validation_delay", |builder| builder.validation_delay(Duration::MAX)),
        ("dial_timeout", |builder| builder.dial_timeout(Duration::MAX)),
        ("resolve_timeout", |builder| builder.resolve_timeout(Duration::MAX)),
        ("store_timeout", |builder| builder.store_timeout(Duration::MAX)),
        ("revalidate_every", |builder| builder.revalidate_every(Duration::MAX)),
        ("revalidate_at_most", |builder| builder.revalidate_at_most(Duration::MAX)),
        ("cache_time_to_idle", |builder| builder.cache_time_to_idle(Duration::MAX)),
    ];
    for (name, set) in endless {
        assert_eq!(refused(set).settings()[0], name);
    }
}

#[test]
fn a_builder_and_a_layer_show_their_settings_and_nothing_else() {
    let world = World::new();
    let shown = format!("{:?}", world.builder());
    for default in [
        "validation_delay: 250ms",
        "revalidate_every: 2s",
        "revalidate_at_most: 15s",
        "dial_timeout: 30s",
        "max_pending_dials: 64",
        "resolve_timeout: 5s",
        "store_timeout: 5s",
        "cache_capacity: 100000",
        "cache_time_to_idle: 3600s",
        "redial: Once",
        "repair: Background",
        "serve_without_store: false",
    ] {
        assert!(shown.contains(default), "{default} in {shown}");
        assert!(format!("{:?}", world.layer()).contains(default));
    }
}

#[tokio::test(start_paused = true)]
async fn by_default_a_hanging_dial_is_validated_after_250_ms_then_less_often_and_ends_after_30_s() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.layer();
    let chat = world.bind(&layer, ws).await;
    world.does(&target, Does::Hang);
    sleep(secs(60)).await;
    let (begin, asked) = (Instant::now(), world.asked().len());
    let error = call(&world.dial(&layer), chat).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::TimedOut { last: LastVerdict::Same });
    assert_eq!(begin.elapsed(), secs(30));
    let asked: Vec<_> =
        world.asked()[asked..].iter().map(|(at, _)| (*at - begin).as_millis()).collect();
    assert_eq!(asked, [250, 2_250, 6_250, 14_250, 29_250]);
}

#[tokio::test(start_paused = true)]
async fn by_default_a_question_and_a_statement_end_after_5_s() {
    let world = World::new();
    let (ws, _) = world.workspace();
    let layer = world.layer();
    let dial = world.dial(&layer);
    world.says(ws, Says::Hangs);
    let begin = Instant::now();
    let error = call(&dial, DialSession::new(session()).in_workspace(ws)).await.unwrap_err();
    assert_eq!((error.kind(), begin.elapsed()), (&ErrorKind::Resolver, secs(5)));
    world.store.on_all(Fault::Hang);
    let begin = Instant::now();
    let error = call(&dial, DialSession::new(session()).in_workspace(ws)).await.unwrap_err();
    assert_eq!((error.kind(), begin.elapsed()), (&ErrorKind::Store, secs(5)));
}

#[tokio::test(start_paused = true)]
async fn every_time_limit_is_the_one_that_was_set() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world
        .builder()
        .validation_delay(ms(70))
        .revalidate_every(ms(300))
        .revalidate_at_most(ms(500))
        .dial_timeout(ms(2_000))
        .resolve_timeout(ms(400))
        .store_timeout(ms(600))
        .build()
        .unwrap();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;
    world.does(&target, Does::Hang);
    sleep(secs(5)).await;
    let (begin, asked) = (Instant::now(), world.asked().len());
    let error = call(&dial, chat).await.unwrap_err();
    assert_eq!(begin.elapsed(), ms(2_000));
    assert_eq!(error.kind(), &ErrorKind::TimedOut { last: LastVerdict::Same });
    let asked: Vec<_> =
        world.asked()[asked..].iter().map(|(at, _)| (*at - begin).as_millis()).collect();
    assert_eq!(asked, [70, 370, 870, 1_370, 1_870]);

    let (other, _) = world.workspace();
    world.says(other, Says::Hangs);
    let begin = Instant::now();
    call(&dial, DialSession::new(session()).in_workspace(other)).await.unwrap_err();
    assert_eq!(begin.elapsed(), ms(400));
    world.store.on_reads(Fault::Hang);
    let begin = Instant::now();
    call(&dial, session()).await.unwrap_err();
    assert_eq!(begin.elapsed(), ms(600));
}

#[tokio::test(start_paused = true)]
async fn a_delay_of_zero_validates_every_dial_that_is_not_ready_at_once() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.builder().validation_delay(NO).build().unwrap();
    let dial = world.dial(&layer);
    let chat = world.bind(&layer, ws).await;

    let (before, begin) = (world.counts(), Instant::now());
    world.does(&target, Does::Answer(ms(5)));
    assert_eq!(call(&dial, chat).await.unwrap().outcome().kind, OutcomeKind::Confirmed);
    assert_eq!((begin.elapsed(), world.counts() - before), (ms(5), counts(1, 1, 0, 0)));

    let new = world.rebuild(ws, &target, Does::Hang);
    let (before, begin) = (world.counts(), Instant::now());
    assert_eq!(call(&dial, chat).await.unwrap().agent, new.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!((begin.elapsed(), world.counts() - before), (NO, counts(2, 1, 0, 1)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_is_repeated_once_by_default_and_never_with_redial_never() {
    for (redial, dials) in [(None, 2), (Some(Redial::Once), 2), (Some(Redial::Never), 1)] {
        let world = World::new();
        let (ws, target) = world.workspace();
        let builder = world.builder();
        let layer = match redial {
            Some(redial) => builder.redial(redial),
            None => builder,
        }
        .build()
        .unwrap();
        let chat = world.bind(&layer, ws).await;
        world.does(&target, Does::Fail(NO));
        let before = world.counts();
        let error = call(&world.dial(&layer), chat).await.unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Unreachable { newer: None });
        assert_eq!(world.counts() - before, counts(dials, 1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn redial_never_still_dials_another_agent() {
    let world = World::new();
    let (ws, old) = world.workspace();
    let layer = world.builder().redial(Redial::Never).build().unwrap();
    let chat = world.bind(&layer, ws).await;
    let new = world.rebuild(ws, &old, Does::Fail(NO));
    let before = world.counts();
    assert_eq!(call(&world.dial(&layer), chat).await.unwrap().agent, new.agent);
    assert_eq!(layer.bindings().flush().await, 0);
    assert_eq!(world.counts() - before, counts(2, 1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn redial_never_waits_for_a_hanging_resolver_until_its_timeout() {
    let world = World::new();
    let (ws, target) = world.workspace();
    let layer = world.builder().redial(Redial::Never).build().unwrap();
    let chat = world.bind(&layer, ws).await;
    world.does(&target, Does::Fail(NO));
    world.says(ws, Says::Hangs);
    let (before, begin) = (world.counts(), Instant::now());
    let error = call(&world.dial(&layer), chat).await.unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Unreachable { newer: None });
    assert!(error.dial_error().is_some() && error.validation_error().is_some());
    assert_eq!((begin.elapsed(), world.counts() - before), (secs(5), counts(1, 1, 0, 0)));
}

#[tokio::test(start_paused = true)]
async fn by_default_a_connection_does_not_wait_for_its_repair() {
    for (mode, after) in
        [(None, NO), (Some(RepairMode::Background), NO), (Some(RepairMode::BeforeReturn), ms(300))]
    {
        let world = World::new();
        let (ws, old) = world.workspace();
        let builder = world.builder();
        let layer = match mode {
            Some(mode) => builder.repair(mode),
            None => builder,
        }
        .build()
        .unwrap();
        let chat = world.bind(&layer, ws).await;
        world.rebuild(ws, &old, Does::Fail(NO));
        world.store.on_writes(Fault::Slow(ms(300)));
        let begin = Instant::now();
        let bound = call(&world.dial(&layer), chat).await.unwrap();
        let expected = if after.is_zero() { Repair::Pending } else { Repair::Written };
        assert_eq!((begin.elapsed(), bound.outcome().repair()), (after, expected));
        assert_eq!(layer.bindings().flush().await, 0);
    }
}

#[test]
fn settings_replace_what_was_set_before_and_are_checked_as_the_builder_checks() {
    let mut settings = Settings::default();
    settings.validation_delay = ms(70);
    settings.refresh_interval = RefreshInterval::Every(secs(7));
    let builder = World::new().builder().dial_timeout(secs(99)).settings(settings);
    let shown = format!("{:?}", builder.store_timeout(secs(3)));
    for set in ["validation_delay: 70ms", "Every(7s)", "dial_timeout: 30s", "store_timeout: 3s"] {
        assert!(shown.contains(set), "{set} in {shown}");
    }
    let by_method = World::new().builder().settings(settings).refresh_interval(None);
    assert!(format!("{by_method:?}").contains("refresh_interval: Never"));

    settings.dial_timeout = NO;
    let error = refused(|builder| builder.settings(settings));
    assert_eq!(error, refused(|builder| builder.dial_timeout(NO)));
    assert_eq!(settings.validate(), Err(error));
    assert_eq!(Settings::default().validate(), Ok(()));
}

#[cfg(feature = "serde")]
mod text {
    use super::*;
    use config::{Config, ConfigError, Environment, File, FileFormat};
    use std::{env, fs, path::Path, process::Command};

    /// Each setting as it is written in a file, and as another value in the environment.
    const WRITTEN: [(&str, &str, &str); 15] = [
        ("validation_delay", "\"70ms\"", "80ms"),
        ("revalidate_every", "\"300ms\"", "310ms"),
        ("revalidate_at_most", "\"7s\"", "1m"),
        ("dial_timeout", "\"1m 30s\"", "2m"),
        ("max_pending_dials", "7", "8"),
        ("resolve_timeout", "\"400ms\"", "410ms"),
        ("store_timeout", "\"600ms\"", "610ms"),
        ("cache_capacity", "70000", "80000"),
        ("cache_time_to_idle", "\"2h\"", "3h"),
        ("redial", "\"never\"", "once"),
        ("repair", "\"before_return\"", "background"),
        ("serve_without_store", "true", "false"),
        ("refresh_interval", "\"45s\"", "never"),
        ("usage_interval", "\"5m\"", "never"),
        ("background_connections", "3", "4"),
    ];

    fn in_file() -> Settings {
        let mut settings = Settings::default();
        settings.validation_delay = ms(70);
        settings.revalidate_every = ms(300);
        settings.revalidate_at_most = secs(7);
        settings.dial_timeout = secs(90);
        settings.max_pending_dials = 7;
        settings.resolve_timeout = ms(400);
        settings.store_timeout = ms(600);
        settings.cache_capacity = 70_000;
        settings.cache_time_to_idle = secs(2 * 3_600);
        settings.redial = Redial::Never;
        settings.repair = RepairMode::BeforeReturn;
        settings.serve_without_store = true;
        settings.refresh_interval = RefreshInterval::Every(secs(45));
        settings.usage_interval = Some(secs(300));
        settings.background_connections = 3;
        settings
    }

    fn in_environment() -> Settings {
        let mut settings = Settings::default();
        settings.validation_delay = ms(80);
        settings.revalidate_every = ms(310);
        settings.revalidate_at_most = secs(60);
        settings.dial_timeout = secs(120);
        settings.max_pending_dials = 8;
        settings.resolve_timeout = ms(410);
        settings.store_timeout = ms(610);
        settings.cache_capacity = 80_000;
        settings.cache_time_to_idle = secs(3 * 3_600);
        settings.refresh_interval = RefreshInterval::Never;
        settings.background_connections = 4;
        settings
    }

    /// Reads a file, and over it the environment of this process.
    fn read(file: &Path) -> Result<Settings, ConfigError> {
        Config::builder()
            .add_source(File::from(file).format(FileFormat::Toml))
            .add_source(Environment::with_prefix("BOUND_AGENT"))
            .build()?
            .try_deserialize()
    }

    /// Prints what a child process reads from its file and its environment.
    #[test]
    #[ignore = "a child process of the other tests"]
    fn child() {
        let Some(file) = env::var_os("SETTINGS_FILE") else { return };
        match read(Path::new(&file)) {
            Ok(settings) => println!("\nREAD {}", serde_json::to_string(&settings).unwrap()),
            Err(error) => println!("\nREAD {error}"),
        }
    }

    /// Returns what a process reads that was started with these variables.
    fn read_by_child(file: &str, variables: &[(&str, &str)]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bound-agent.toml");
        fs::write(&path, file).unwrap();
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", "settings::text::child", "--ignored", "--nocapture"]);
        child.env("SETTINGS_FILE", &path);
        for (name, value) in variables {
            child.env(format!("BOUND_AGENT_{}", name.to_uppercase()), value);
        }
        let output = child.output().unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let read = printed.lines().find_map(|line| line.strip_prefix("READ "));
        read.unwrap_or_else(|| panic!("{printed}")).to_owned()
    }

    fn settings(read: &str) -> Settings {
        serde_json::from_str(read).unwrap_or_else(|error| panic!("{error}: {read}"))
    }

    #[test]
    fn every_setting_is_read_from_a_file_and_from_the_environment() {
        let all: serde_json::Value = serde_json::to_value(Settings::default()).unwrap();
        let mut names: Vec<_> = all.as_object().unwrap().keys().map(String::as_str).collect();
        let mut written = WRITTEN.map(|(name, ..)| name);
        names.sort_unstable();
        written.sort_unstable();
        assert_eq!(names, written, "a setting is missing here");

        let file = WRITTEN.map(|(name, value, _)| format!("{name} = {value}\n")).concat();
        let environment = WRITTEN.map(|(name, _, value)| (name, value));
        assert_eq!(settings(&read_by_child("", &[])), Settings::default());
        assert_eq!(settings(&read_by_child(&file, &[])), in_file());
        assert_eq!(settings(&read_by_child(&file, &environment)), in_environment());
        assert_eq!(settings(&read_by_child("", &environment)), in_environment());
        for settings in [in_file(), in_environment()] {
            accepted(|builder| builder.settings(settings));
        }
    }

    #[test]
    fn settings_are_written_as_they_are_read() {
        for settings in [Settings::default(), in_file(), in_environment()] {
            let text = serde_json::to_string(&settings).unwrap();
            assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settings, "{text}");
        }
        let text = serde_json::to_value(Settings::default()).unwrap();
        assert_eq!(text["validation_delay"], "250ms");
        assert_eq!(text["cache_time_to_idle"], "1h");
        assert_eq!(text["refresh_interval"], "automatic");
        assert_eq!(text["usage_interval"], "never");
        assert_eq!(text["redial"], "once");
    }

    #[test]
    fn a_bad_value_is_the_error_of_the_builder() {
        for (variables, expected) in [
            ([("dial_timeout", "0s")], refused(|builder| builder.dial_timeout(NO))),
            ([("validation_delay", "31s")], refused(|builder| builder.validation_delay(secs(31)))),
            ([("cache_capacity", "0")], refused(|builder| builder.cache_capacity(0))),
            ([("usage_interval", "0s")], refused(|builder| builder.usage_interval(NO))),
        ] {
            let read = settings(&read_by_child("", &variables));
            assert_eq!(refused(|builder| builder.settings(read)), expected);
            assert_eq!(expected.settings()[0], variables[0].0);
        }
    }

    #[test]
    fn a_value_that_cannot_be_read_is_named_with_what_is_expected() {
        for (file, variables, named) in [
            ("dial_timeout = 30", &[][..], &["dial_timeout", "30", "\"30s\""][..]),
            ("", &[("dial_timeout", "soon")], &["dial_timeout", "soon", "\"30s\""]),
            ("usage_interval = \"\"", &[], &["usage_interval", "\"never\""]),
            ("refresh_interval = \"often\"", &[], &["refresh_interval", "\"automatic\""]),
            ("redial = \"twice\"", &[], &["redial", "twice"]),
            ("dial_timeot = \"3s\"", &[], &["dial_timeot", "dial_timeout"]),
            ("", &[("dial_timeot", "3s")], &["dial_timeot", "dial_timeout"]),
        ] {
            let read = read_by_child(file, variables);
            for named in named {
                assert!(read.contains(named), "{named} in {read}");
            }
        }
    }
}
