//! The page on a desktop and on a phone, light and dark. `SCREENSHOTS=docs` writes the pictures.

use crate::{browser::Browser, playground::Playground, turns::choose_asking};
use serde_json::json;
use std::{fs, path::Path, process::Command};

const MOST_BYTES: usize = 300_000;

/// Texts whose contrast with their ground is below 4.5, which WCAG asks for.
const PALE: &str = "
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => {
      const part = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
      return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    const ground = (element) => {
      for (; element; element = element.parentElement) {
        const color = parse(getComputedStyle(element).backgroundColor);
        if (color.length === 3 || color[3] === 1) return color;
      }
      return [255, 255, 255];
    };
    const pale = [];
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const element = walk.currentNode.parentElement;
      if (!walk.currentNode.textContent.trim() || !element.checkVisibility() || element.closest('.visually-hidden, .skip')) continue;
      const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(ground(element))];
      const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (contrast < 4.5) pale.push([element.textContent.trim().slice(0, 40), contrast.toFixed(2)]);
    }
    return pale;";

/// Elements that reach beyond the right edge of the window.
const WIDE: &str = "
    return [...document.querySelectorAll('body *')].filter((element) =>
      element.checkVisibility() && !element.closest('.visually-hidden, .skip') &&
      element.getBoundingClientRect().right > innerWidth + 0.5).map((element) => element.outerHTML.slice(0, 80));";

/// Buttons and radio buttons that a thumb misses.
const SMALL: &str = "
    return [...document.querySelectorAll('.controls button, .tab')].filter((element) => element.checkVisibility() &&
      (element.offsetHeight < 44 || element.offsetWidth < 44)).map((element) => element.textContent);";

#[tokio::test]
async fn the_page_is_legible_light_and_dark_and_on_a_phone() {
    // As it is by default, since these are the pictures in the README.
    let playground = Playground::start(&[]);
    let url = format!("http://{}/", playground.address);
    let Some(browser) = Browser::open(&url, 1280, 900).await else { return };
    browser.theme("light").await;
    // Every chat has had its first turn, then some have had another one.
    browser.until("Number(document.getElementById('turns-0').textContent) > 420").await;
    // A turn that an agent has begun when it is replaced fails, and would be the one that is shown:
    // the rebuild happens between turns.
    playground.press("/load/pause").await;
    playground.settled().await;
    browser.click("#rebuild").await;
    browser
        .until("document.getElementById('status').textContent.startsWith('Amber is rebuilt')")
        .await;
    playground.press("/load/run").await;
    browser.until("Number(document.getElementById('slow-2').textContent) >= 100").await;
    browser.until("document.querySelectorAll('#race li').length > 0").await;
    choose_asking(&browser).await;
    browser.until("document.querySelectorAll('#race li').length >= 7").await;
    browser.until("document.getElementById('status').textContent.startsWith('Since')").await;

    let mut pictures = Vec::new();
    for (name, width, height, theme) in
        [("light", 1280, 900, "light"), ("dark", 1280, 900, "dark"), ("phone", 390, 844, "dark")]
    {
        let phone = name == "phone";
        browser.resize(width, height, phone).await;
        browser.theme(theme).await;
        browser
            .until(&format!(
                "innerWidth === {width} && document.documentElement.scrollWidth <= {width}"
            ))
            .await;
        assert_eq!(browser.run(WIDE).await, json!([]), "{name}: wider than the window");
        assert_eq!(browser.run(PALE).await, json!([]), "{name}: too little contrast");
        if phone {
            assert_eq!(browser.run(SMALL).await, json!([]), "{name}: too small for a thumb");
        }
        // The canvases are drawn anew.
        let drawn =
            "return new Promise((done) => requestAnimationFrame(() => setTimeout(done, 150)))";
        browser.run(drawn).await;
        let picture = browser.picture(if phone { "#lanes" } else { ".panels" }).await;
        pictures.push((name, picture));
    }
    assert_ne!(pictures[0].1, pictures[1].1, "the themes look the same");
    if let Some(folder) = std::env::var_os("SCREENSHOTS") {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
        for (name, picture) in &pictures {
            let bytes = picture.len() / 4 * 3;
            assert!(bytes < MOST_BYTES, "{name}: a picture of {bytes} bytes, please take another");
            write(&folder.join(format!("playground-{name}.png")), picture);
        }
    }
    browser.theme("light").await;
    assert_eq!(browser.run(PALE).await, json!([]), "a light phone: too little contrast");
    browser.close(&playground.address).await;
}

fn write(path: &Path, base64: &str) {
    let encoded = path.with_extension("base64");
    fs::write(&encoded, base64).unwrap();
    let decode = format!("base64 -d {} > {}", encoded.display(), path.display());
    assert!(Command::new("sh").args(["-c", &decode]).status().unwrap().success());
    fs::remove_file(encoded).unwrap();
}
