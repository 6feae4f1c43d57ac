//! A turn and its race, by mouse and by keyboard.

use crate::{browser::Browser, playground::Playground};
use fantoccini::key::Key;
use serde_json::Value;

/// Starts the playground with chats that are bound and paused, and rebuilds a workspace. Its chats
/// then take a turn.
async fn rebuilt() -> Option<(Playground, Browser)> {
    let playground = Playground::start(&["--chats", "40", "--turns", "40"]);
    let browser = Browser::open(&format!("http://{}/", playground.address), 1280, 900).await?;
    browser.until("document.querySelectorAll('#places input').length === 5").await;
    playground.press("/load/pause").await;
    for press in ["/storm", "/workspaces/0/rebuild", "/storm"] {
        playground.press(press).await;
        playground.settled().await;
    }
    Some((playground, browser))
}

/// Chooses the turn of this crate that has asked the resolver and was switched to another agent, by
/// keyboard if it is not shown already: turns that were slow because the machine was come later,
/// and so do turns that wait for its answer.
pub async fn choose_asking(browser: &Browser) {
    let asked = async || {
        let facts = browser.text("#race-facts").await.replace('\n', " ");
        browser.text("#race-text").await.starts_with("Switched after")
            && facts.contains("validations 1")
    };
    if asked().await {
        return;
    }
    browser.run("document.getElementById('strip-0').focus()").await;
    browser.key(Key::Home).await;
    for _ in 0..100 {
        let said = "return document.getElementById('strip-0').getAttribute('aria-valuetext')";
        let said = browser.run(said).await;
        let (_, place) = said.as_str().and_then(|said| said.rsplit_once(", ")).unwrap();
        let shown =
            format!("document.getElementById('race-title').textContent.includes('{place}')");
        browser.until(&shown).await;
        if asked().await {
            return;
        }
        browser.key(Key::PageDown).await;
    }
    panic!("no turn that was switched has asked");
}

#[tokio::test]
async fn a_slow_turn_is_shown_as_the_race_that_it_was() {
    let Some((playground, browser)) = rebuilt().await else { return };
    // The latest slow turn of this crate is shown without a click.
    browser.until("document.getElementById('turns-0').textContent === '40'").await;
    browser.until("document.querySelectorAll('#race li').length > 0").await;
    let latest = browser.text("#race-text").await;
    choose_asking(&browser).await;
    browser.until("document.querySelectorAll('#race li').length >= 7").await;
    let race = browser.text("#race").await;
    for step in [
        "dial build 1",
        "ask the resolver",
        "dial build 2",
        "build 1 → build 2",
        "the turn",
        "write the workspace's bindings",
    ] {
        assert!(race.contains(step), "no {step:?} in\n{race}");
    }
    let facts = browser.text("#race-facts").await.replace('\n', " ");
    assert!(facts.contains("dials 2") && facts.contains("validations 1"), "{facts}");
    assert!(facts.contains("repair written"), "{facts}");

    // A click on a point chooses the nearest turn: here one that hangs, in the upper right.
    let failed = browser
        .run(
            "const box = document.querySelector('#strip-2').getBoundingClientRect();
             for (let x = box.right - 2; x > box.left; x -= 4) {
               document.querySelector('#strip-2').dispatchEvent(new MouseEvent('click',
                 { clientX: x, clientY: box.top + 22, bubbles: true }));
               const said = document.querySelector('#strip-2').getAttribute('aria-valuetext');
               if (said.startsWith('failed')) return said;
             }
             return null;",
        )
        .await;
    assert!(failed.as_str().is_some_and(|said| said.contains("in Amber")), "{failed}");
    browser
        .until("document.querySelector('#race-text').textContent.startsWith('Failed after 2')")
        .await;
    browser.until("!document.querySelector('#follow').hidden").await;
    browser.click("#follow").await;
    browser
        .until(&format!("document.querySelector('#race-text').textContent === {:?}", latest))
        .await;
    browser.close(&playground.address).await;
}

#[tokio::test]
async fn everything_can_be_done_with_the_keyboard() {
    let Some((playground, browser)) = rebuilt().await else { return };
    browser
        .run("document.querySelector('#follow').hidden = true; document.activeElement.blur()")
        .await;

    // Every stop of the Tab key, in the order of the page, with a visible focus.
    let mut stops = Vec::new();
    for _ in 0..16 {
        browser.key(Key::Tab).await;
        let stop = browser
            .run(
                "const at = document.activeElement;
                 const shown = at.type === 'radio' ? at.nextElementSibling : at;
                 const style = getComputedStyle(shown);
                 const seen = at.className === 'skip' || parseFloat(style.outlineWidth) >= 3 && style.outlineStyle === 'solid';
                 return [at.id || at.className || at.tagName, seen];",
            )
            .await;
        assert_eq!(stop[1], true, "the focus is not visible on {}", stop[0]);
        stops.push(stop[0].as_str().unwrap().to_owned());
    }
    let expected = [
        "skip",
        "place-0",
        "rebuild",
        "stop",
        "start",
        "retarget",
        "kill",
        "freeze",
        "black-hole",
        "storm",
        "database",
        "load",
        "strip-0",
        "strip-1",
        "strip-2",
        "SUMMARY",
    ];
    assert_eq!(stops, expected);

    // The details open.
    browser.key(Key::Enter).await;
    browser.until("document.querySelector('details').open").await;

    // Arrows choose a workspace; Space and Enter press.
    browser.run("document.getElementById('place-0').focus()").await;
    browser.key(Key::Right).await;
    browser.until("document.getElementById('place-1').checked").await;
    browser.key(Key::Tab).await;
    browser.key(Key::Enter).await;
    browser
        .until(
            "document.getElementById('status').textContent.startsWith('Birch is rebuilt: build 2')",
        )
        .await;
    for _ in ["stop", "start", "retarget", "kill", "freeze", "black-hole", "storm"] {
        browser.key(Key::Tab).await;
    }
    browser.client.active_element().await.unwrap().send_keys(" ").await.unwrap();
    browser.until("document.getElementById('status').textContent.startsWith('All 40 chats')").await;
    playground.settled().await;
    browser.until("document.getElementById('turns-2').textContent === '40'").await;

    // Turns by arrows.
    browser.run("document.getElementById('strip-0').focus()").await;
    let chosen = async |lane: u32| {
        let strip = format!("document.getElementById('strip-{lane}')");
        let script = format!(
            "return [{strip}.getAttribute('aria-valuenow'), {strip}.getAttribute('aria-valuetext')]"
        );
        let chosen = browser.run(&script).await;
        (
            chosen[0].as_str().unwrap().parse::<i64>().unwrap(),
            chosen[1].as_str().unwrap().to_owned(),
        )
    };
    browser.key(Key::End).await;
    let (last, _) = chosen(0).await;
    browser.key(Key::Left).await;
    browser.key(Key::Left).await;
    assert_eq!(chosen(0).await.0, last - 2);
    browser.key(Key::Right).await;
    assert_eq!(chosen(0).await.0, last - 1);
    browser.key(Key::Home).await;
    choose_asking(&browser).await;
    browser.key(Key::Home).await;
    let (first, _) = chosen(0).await;
    assert!(first < last - 2, "{first}, {last}");
    browser.key(Key::PageDown).await;
    assert!(chosen(0).await.0 > first);
    browser.key(Key::Down).await;
    browser.key(Key::Down).await;
    browser.until("document.activeElement.id === 'strip-2'").await;
    browser.key(Key::End).await;
    browser.key(Key::PageUp).await;
    let (_, said) = chosen(2).await;
    assert!(said.starts_with("failed after 2.0"), "{said}");
    browser.key(Key::Up).await;
    browser.until("document.activeElement.id === 'strip-1'").await;
    browser.key(Key::Right).await;
    let (_, said) = chosen(1).await;
    assert!(said.starts_with("answered after"), "{said}");
    let title: Value =
        browser.run("return document.querySelector('#race-title').textContent").await;
    assert!(title.as_str().is_some_and(|title| title.contains("resolve every turn")), "{title}");
    browser.close(&playground.address).await;
}
