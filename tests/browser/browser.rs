//! Chromium, driven by chromedriver.

use crate::playground::soon;
use fantoccini::{Client, ClientBuilder, Locator, wd::WebDriverCompatibleCommand};
use http::Method;
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use std::{
    env,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;
use tokio::time::sleep;
use url::{ParseError, Url};

const HOW: &str = "tests/servers installs it (Debian's packages chromium and chromium-driver)";

/// A window of a browser of its own.
pub struct Browser {
    pub client: Client,
    driver: Child,
    _folder: TempDir,
}

impl Browser {
    /// Returns `None`, and prints why, if there is no Chromium. In CI, fails the test.
    pub async fn open(url: &str, width: u32, height: u32) -> Option<Self> {
        let (Some(driver), Some(chromium)) = (find("chromedriver"), find("chromium")) else {
            support::servers::left_out(&format!(
                "chromium or chromedriver is not installed; {HOW}"
            ));
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0) // so that the browser ends with it
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            line.split_once("successfully on port ")
                .map(|(_, port)| port.trim_end_matches('.').to_owned())
        });
        let port = port.expect("chromedriver did not start");
        // The sandbox does not work for root, or without user namespaces.
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"];
        let capabilities = json!({
            "browserName": "chrome",
            "goog:chromeOptions": { "binary": chromium, "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap_or_else(|error| panic!("Chromium does not start: {error}"));
        let browser = Self { client, driver, _folder: folder };
        browser.resize(width, height, false).await;
        browser.client.goto(url).await.unwrap();
        Some(browser)
    }

    pub async fn resize(&self, width: u32, height: u32, phone: bool) {
        let scale = if phone { 1.5 } else { 1.0 };
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone }),
        )
        .await;
    }

    pub async fn theme(&self, theme: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": theme });
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": [feature] })).await;
    }

    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        soon(self.client.issue_cmd(Extension("goog/cdp/execute", body))).await.unwrap()
    }

    /// Runs the body of a function in the page.
    pub async fn run(&self, script: &str) -> Value {
        soon(self.client.execute(script, Vec::new())).await.unwrap()
    }

    /// Waits until an expression is true in the page.
    pub async fn until(&self, expression: &str) {
        for _ in 0..300 {
            if self.run(&format!("return !!({expression})")).await == true {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
        let text = self.run("return document.body.innerText").await;
        panic!("not true within 15 s: {expression}\n{}", text.as_str().unwrap_or_default());
    }

    /// Clicks an element as a user does: it must be visible, and nothing may cover it.
    pub async fn click(&self, selector: &str) {
        let element = self.client.find(Locator::Css(selector)).await;
        element.unwrap().click().await.unwrap_or_else(|error| panic!("{selector}: {error}"));
    }

    pub async fn text(&self, selector: &str) -> String {
        let element = self.client.find(Locator::Css(selector)).await;
        element.unwrap_or_else(|error| panic!("{selector}: {error}")).text().await.unwrap()
    }

    /// Sends a key to the element that has the focus.
    pub async fn key(&self, key: fantoccini::key::Key) {
        let key = char::from(key).to_string();
        self.client.active_element().await.unwrap().send_keys(&key).await.unwrap();
    }

    /// A picture of the page down to the end of an element, as a PNG in base64.
    pub async fn picture(&self, last: &str) -> String {
        let end = format!(
            "document.querySelector('{last}').getBoundingClientRect().bottom + scrollY + 16"
        );
        let size = self.run(&format!("return [innerWidth, Math.ceil({end})]")).await;
        let clip = json!({ "x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1 });
        let parameters = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let picture = self.devtools("Page.captureScreenshot", parameters).await;
        picture["data"].as_str().unwrap().to_owned()
    }

    /// Ends the browser. Fails if the page has logged anything, or has loaded anything from
    /// elsewhere than the playground.
    pub async fn close(self, address: &str) {
        let log = self.client.issue_cmd(Extension("se/log", json!({ "type": "browser" })));
        let log = log.await.unwrap();
        assert_eq!(log, json!([]), "the console of the page is not empty");
        let log = self.client.issue_cmd(Extension("se/log", json!({ "type": "performance" })));
        let mut requests = 0;
        for entry in log.await.unwrap().as_array().unwrap() {
            let entry: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            if entry["message"]["method"] == "Network.requestWillBeSent" {
                let url = entry["message"]["params"]["request"]["url"].as_str().unwrap();
                let own =
                    url.starts_with(&format!("http://{address}/")) || url.starts_with("data:");
                assert!(own, "the page has requested {url}");
                requests += 1;
            }
        }
        assert!(requests >= 3, "the log of requests has only {requests}");
        self.client.clone().close().await.unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let kill = format!("kill -KILL -{}", self.driver.id());
        let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
        let _ = self.driver.wait();
    }
}

fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.exists())
}

/// A command of chromedriver beyond the standard.
#[derive(Debug)]
struct Extension(&'static str, Value);

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.0))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.1.to_string()))
    }
}
