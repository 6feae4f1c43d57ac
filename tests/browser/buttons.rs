//! Every button, and every counter after it. The chats are paused and take turns by "storm" only,
//! so that all numbers are exact.

use crate::{browser::Browser, playground::Playground};
use serde_json::Value;

const CHATS: u64 = 40;
const IN_ONE: u64 = CHATS / 4;
/// Milliseconds. A healthy dial that takes as long is one more question: longer than by default,
/// since a browser and other tests run beside it.
const DELAY: &str = "1000";
const COUNTERS: [&str; 6] = ["slow", "failed", "sql", "reads", "turns", "waiting"];

struct Test {
    playground: Playground,
    browser: Browser,
}

/// What a lane has counted since the last press: failed turns, SQL statements, resolver reads.
type Numbers = [u64; 3];

impl Test {
    async fn start() -> Option<Self> {
        let playground = Playground::start(&["--chats", "40", "--turns", "40", "--delay", DELAY]);
        let browser = Browser::open(&format!("http://{}/", playground.address), 1280, 900).await?;
        browser.until("document.querySelectorAll('#places input').length === 5").await;
        Some(Self { playground, browser })
    }

    async fn choose(&self, place: &str) {
        self.browser.click(&format!("#place-{place}")).await;
    }

    /// Presses a button, and returns what the page says about it.
    async fn press(&self, button: &str) -> String {
        self.browser.run("document.getElementById('status').textContent = ''").await;
        self.browser.click(&format!("#{button}")).await;
        self.browser.until("document.getElementById('status').textContent").await;
        self.browser.text("#status").await
    }

    /// Waits until no turn is under way, and compares the page with the numbers of the server.
    async fn settled(&self) -> Value {
        let state = self.playground.settled().await;
        for lane in 0..3 {
            for counter in COUNTERS {
                let now = state["counters"][lane][counter].as_u64().unwrap();
                let before = state["press"]["counters"][lane][counter].as_u64().unwrap_or(0);
                let shown = if counter == "waiting" { now } else { now - before };
                let cell = format!("document.getElementById('{counter}-{lane}').textContent");
                let shown = grouped(shown);
                self.browser.until(&format!("{cell} === '{shown}'")).await;
            }
        }
        // Each question of a lane is one statement of the resolver, as SQLite counts them.
        let asked = (0..3).map(|lane| state["counters"][lane]["reads"].as_u64().unwrap());
        assert_eq!(state["resolver_statements"], asked.sum::<u64>());
        state
    }

    /// Lets every chat take a turn, and compares what it costs.
    async fn storm(&self, why: &str, expected: [Numbers; 3]) -> Value {
        let said = self.press("storm").await;
        assert_eq!(said, "All 40 chats take a turn at once, in every lane.");
        let state = self.settled().await;
        for (lane, expected) in expected.iter().enumerate() {
            let since = |counter: &str| {
                state["counters"][lane][counter].as_u64().unwrap()
                    - state["press"]["counters"][lane][counter].as_u64().unwrap()
            };
            assert_eq!(since("turns"), CHATS, "{why}, lane {lane}");
            let found = ["failed", "sql", "reads"].map(since);
            assert_eq!(
                found, *expected,
                "{why}, lane {lane}: failed, SQL, resolver reads; all until now: {}",
                state["workspaces"]
            );
        }
        state
    }

    async fn label(&self, button: &str, label: &str) {
        let text = format!("document.getElementById('{button}').textContent");
        self.browser.until(&format!("{text} === '{label}'")).await;
    }

    async fn place(&self, place: usize, text: &str) {
        let shown =
            format!("document.querySelector('#place-{place} + span .condition').textContent");
        self.browser.until(&format!("{shown} === '{text}'")).await;
    }
}

fn grouped(number: u64) -> String {
    if number < 1000 {
        number.to_string()
    } else {
        format!("{},{:03}", number / 1000, number % 1000)
    }
}

/// One test, since every step builds on the state that the one before has left.
#[tokio::test]
async fn every_button_does_what_it_says_and_every_counter_is_exact() {
    let Some(test) = Test::start().await else { return };
    let (browser, resolved) = (&test.browser, [0, CHATS, CHATS]);

    // Pause.
    assert_eq!(test.press("load").await, "The chats are paused.");
    test.label("load", "Resume").await;
    let state = test.settled().await;
    assert_eq!(state["press"], Value::Null);
    assert_eq!(state["load"], "paused");

    // Storm. After the first one every chat is bound, and a turn costs this crate nothing.
    test.press("storm").await;
    test.settled().await;
    test.storm("all bound", [[0; 3], resolved, [0; 3]]).await;

    // Rebuild: one question and one statement for all chats of the workspace.
    let said = test.press("rebuild").await;
    assert_eq!(said, "Amber is rebuilt: build 2 serves it, and the old agent hangs.");
    test.place(0, "build 2, running").await;
    let state = test.storm("rebuilt", [[0, 1, 1], resolved, [IN_ONE, 0, 0]]).await;
    assert_eq!(state["counters"][0]["switched"], IN_ONE);
    let since = |lane: usize| {
        let slow = |state: &Value| state[lane]["slow"].as_u64().unwrap();
        slow(&state["counters"]) - slow(&state["press"]["counters"])
    };
    // Those that have begun before the answer wait for it.
    assert!((1..=CHATS).contains(&since(0)), "{}", since(0));
    assert!(since(2) >= IN_ONE, "all of them hang: {}", since(2));
    test.storm("a turn later", [[0; 3], resolved, [IN_ONE, 0, 0]]).await;

    // Kill: this crate asks, dials again, and says that it failed. Nobody can do better.
    test.choose("1").await;
    test.press("kill").await;
    test.place(1, "build 1, killed").await;
    let state = test.storm_failed("killed", [IN_ONE, IN_ONE, 2 * IN_ONE]).await;
    assert!(browser.text("#place-1 + span").await.contains("killed"), "{state}");
    assert_eq!(test.press("kill").await, "Birch has no agent.");
    browser.until("document.getElementById('status').className === 'refused'").await;

    // Start.
    assert_eq!(test.press("start").await, "Birch is started: build 2 serves it.");
    test.place(1, "build 2, running").await;
    test.storm_failed("started", [0, 0, 2 * IN_ONE]).await;
    test.storm("a turn later", [[0; 3], resolved, [2 * IN_ONE, 0, 0]]).await;

    // Freeze and thaw.
    test.choose("2").await;
    test.press("freeze").await;
    test.label("freeze", "Thaw").await;
    test.place(2, "build 1, frozen").await;
    test.storm_failed("frozen", [IN_ONE, IN_ONE, 3 * IN_ONE]).await;
    assert_eq!(test.press("freeze").await, "The agent of Cedar is running again.");
    test.label("freeze", "Freeze").await;
    test.storm_failed("thawed", [0, 0, 2 * IN_ONE]).await;

    // Black hole and answer.
    test.press("black-hole").await;
    test.label("black-hole", "Answer").await;
    test.place(2, "build 1, black hole").await;
    test.storm_failed("black hole", [IN_ONE, IN_ONE, 3 * IN_ONE]).await;
    assert_eq!(test.press("black-hole").await, "The agent of Cedar answers again.");
    test.label("black-hole", "Black hole").await;
    test.storm_failed("answers", [0, 0, 2 * IN_ONE]).await;

    // Stop.
    test.choose("3").await;
    assert_eq!(test.press("stop").await, "Dune is stopped.");
    test.place(3, "build 1, stopped").await;
    test.storm_failed("stopped", [IN_ONE, IN_ONE, 3 * IN_ONE]).await;
    test.press("start").await;
    test.storm_failed("started", [0, 0, 3 * IN_ONE]).await;

    // Retarget: all chats of the workspace, since it has no more than ten.
    let said = test.press("retarget").await;
    assert_eq!(said, "10 chats of Dune are moved to Amber.");
    browser
        .until("document.querySelector('#place-0 + span small').textContent === '20 chats'")
        .await;
    browser
        .until("document.querySelector('#place-3 + span small').textContent === '0 chats'")
        .await;
    test.storm_failed("retargeted", [0, 0, 2 * IN_ONE]).await;

    // Database down: chats with a cached binding go on.
    assert_eq!(test.press("database").await, "The database is down.");
    test.label("database", "Database up").await;
    test.storm("database down", [[0; 3], [CHATS, 0, 0], [2 * IN_ONE, 0, 0]]).await;
    let refused = test.press("rebuild").await;
    assert_eq!(refused, "the database is down: the platform cannot write the table of builds.");
    assert_eq!(test.press("database").await, "The database is up.");
    test.label("database", "Database down").await;

    // All workspaces at once.
    test.choose("all").await;
    assert_eq!(test.press("rebuild").await, "Rebuild: done in 4 workspaces.");
    for (place, build) in [3, 3, 2, 3].iter().enumerate() {
        test.place(place, &format!("build {build}, running")).await;
    }
    browser
        .until(
            "document.querySelector('#place-all + span .condition').textContent === 'all running'",
        )
        .await;
    let state = test.storm_failed("all rebuilt", [0, 0, CHATS]).await;
    assert_eq!(
        state["counters"][0]["reads"].as_u64().unwrap()
            - state["press"]["counters"][0]["reads"].as_u64().unwrap(),
        3
    );

    // Resume.
    assert_eq!(test.press("load").await, "The chats take turns.");
    test.label("load", "Pause").await;
    let turns = "Number(document.getElementById('turns-1').textContent.replace(',', ''))";
    browser.until(&format!("{turns} > {}", CHATS + 20)).await;

    test.browser.close(&test.playground.address).await;
}

impl Test {
    /// As [`storm`](Self::storm), where only failed turns are the same in each run: how many
    /// statements and questions failed dials cost depends on their order.
    async fn storm_failed(&self, why: &str, expected: [u64; 3]) -> Value {
        self.press("storm").await;
        let state = self.settled().await;
        let since = |lane: usize, counter: &str| {
            state["counters"][lane][counter].as_u64().unwrap()
                - state["press"]["counters"][lane][counter].as_u64().unwrap()
        };
        for (lane, expected) in expected.into_iter().enumerate() {
            assert_eq!(since(lane, "turns"), CHATS, "{why}, lane {lane}");
            assert_eq!(since(lane, "failed"), expected, "{why}, lane {lane}: failed");
        }
        state
    }
}
