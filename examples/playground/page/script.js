// The page of the playground: draws what the server sends, and sends what is pressed.

let slowFrom = 250; // milliseconds: the validation delay, as the server says
const WINDOW = 30_000; // of the lanes
const LATENCY_WINDOW = 60_000;
const LATE = 250; // the right edge is this far behind, so that turns do not appear within the picture
const FLOOR = 0.5, CEILING = 3_000; // milliseconds, the scale of all pictures
const TICKS = [[1, "1 ms"], [10, "10 ms"], [100, "100 ms"], [1_000, "1 s"]];
const MOST_TURNS = 5_000; // kept of each lane
const LANES = ["this crate", "resolve every turn", "remember, never question"];
const COUNTERS = [["slow", "Slow"], ["failed", "Failed"], ["sql", "SQL"], ["reads", "Resolver"], ["turns", "Turns"], ["waiting", "Waiting"]];
const MUCH = { slow: 10, failed: 1, sql: 400, reads: 100 }; // numbers that stand out

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en-US");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const turns = [[], [], []]; // {id, outcome, began, took, chat, workspace}, in the order of their ends
const slowest = [new Map(), new Map(), new Map()]; // milliseconds by second
let presses = []; // {number, label, at}
let state = null;
let offset = null; // from this page's clock to the server's
let frozen = null; // the time at which a paused picture stands
let chosen = null; // {lane, id, turn}
let followed = true; // no turn was chosen by hand
let place = 0;

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function milliseconds(ms) {
  if (ms >= 1_000) return `${(ms / 1_000).toFixed(2)} s`;
  return ms >= 100 ? `${ms.toFixed(0)} ms` : `${ms.toFixed(1)} ms`;
}

// ---- what the server sends

const source = new EventSource("/events");
source.onopen = () => { $("lost").hidden = true; };
source.onerror = () => { $("lost").hidden = false; };
source.onmessage = (message) => {
  const frame = JSON.parse(message.data);
  const difference = frame.now - performance.now();
  if (offset === null || Math.abs(difference - offset) > 1_000) offset = difference;
  else offset += (difference - offset) * 0.1;
  const begin = turns.every((lane) => lane.length === 0);
  if (begin && frame.presses.length > 0) presses = [];
  state = frame.state;
  slowFrom = state.delay;
  const quiet = state.load === "paused" && state.counters.every((lane) => lane.waiting === 0);
  frozen = quiet ? frame.now : null;
  for (const [number, label, at] of frame.presses) {
    if (presses.every((press) => press.number !== number)) presses.push({ number, label, at });
  }
  for (const [id, lane, outcome, began, took, chat, workspace] of frame.turns) {
    const of = turns[lane];
    if (of.length > 0 && id <= of[of.length - 1].id) continue; // a page that connects again
    const turn = { id, outcome, began, took, chat, workspace };
    of.push(turn);
    const second = Math.floor((began + took) / 1_000);
    slowest[lane].set(second, Math.max(slowest[lane].get(second) ?? 0, took));
    if (lane === 0 && followed && took >= slowFrom) follow(turn);
  }
  forget(frame.now);
  show();
  if (still.matches) draw();
};

function forget(now) {
  for (const of of turns) {
    let gone = 0;
    while (gone < of.length && of[gone].began + of[gone].took < now - WINDOW - 2_000) gone++;
    of.splice(0, Math.max(gone, of.length - MOST_TURNS));
  }
  for (const seconds of slowest) {
    for (const second of seconds.keys()) if (second * 1_000 < now - LATENCY_WINDOW - 2_000) seconds.delete(second);
  }
  presses = presses.filter((press) => press.at > now - WINDOW - 1_000);
}

function time() {
  return (frozen ?? performance.now() + (offset ?? 0)) - LATE;
}

// ---- numbers and buttons

const cells = [0, 1, 2].map((lane) => Object.fromEntries(COUNTERS.map(([key, label]) => {
  const value = make("dd", { class: "none", id: `${key}-${lane}` }, "0");
  document.querySelector(`.lane-${lane} dl`).append(make("div", {}, make("dt", {}, label), value));
  return [key, value];
})));

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function show() {
  put($("chats"), number.format(state.chats));
  put($("slow-from"), milliseconds(state.delay));
  put($("dial-timeout"), milliseconds(state.dial_timeout));
  const press = state.press;
  for (let lane = 0; lane < 3; lane++) {
    for (const [key] of COUNTERS) {
      const now = state.counters[lane][key];
      const value = key === "waiting" ? now : now - (press?.counters[lane][key] ?? 0);
      const cell = cells[lane][key];
      put(cell, number.format(value));
      cell.className = value === 0 ? "none" : value >= (MUCH[key] ?? Infinity) ? "much" : "";
      if (key !== "waiting") cell.title = `${number.format(now)} since the start`;
    }
  }
  const now = frozen ?? performance.now() + offset;
  put($("since"), press ? `Since “${press.label}”, ${Math.max(0, Math.round((now - press.at) / 1_000))} s ago` : "Since the start");
  showPlaces();
  const chosen = of(place);
  const all = (condition) => chosen.length > 0 && chosen.every((workspace) => workspace.condition === condition);
  toggle("freeze", all("frozen"), "Freeze", "Thaw");
  toggle("black-hole", all("black hole"), "Black hole", "Answer");
  toggle("database", state.database === "down", "Database down", "Database up");
  toggle("load", state.load === "paused", "Pause", "Resume", false);
  showLatencyText();
}

function toggle(id, on, off_label, on_label, alarming = true) {
  put($(id), on ? on_label : off_label);
  $(id).classList.toggle("on", on && alarming);
}

function of(place) {
  return place === "all" ? state.workspaces : [state.workspaces[place]];
}

function showPlaces() {
  const box = $("places");
  const places = [...state.workspaces.map((workspace, n) => [n, workspace]), ["all", null]];
  for (const [key, workspace] of places) {
    let tab = $(`place-${key}`)?.nextElementSibling;
    if (!tab) {
      const input = make("input", { type: "radio", name: "place", id: `place-${key}`, value: key });
      input.checked = key === place;
      input.addEventListener("change", () => { place = key; show(); });
      tab = make("span", { class: "tab" }, make("b"), make("small"), make("span", { class: "condition" }));
      box.append(make("label", {}, input, tab));
    }
    const [name, chats, condition] = tab.children;
    const broken = state.workspaces.filter((workspace) => !workspace.running);
    put(name, workspace ? workspace.name : "All");
    put(chats, workspace ? `${workspace.chats} chats` : "");
    put(condition, workspace ? `build ${workspace.build}, ${workspace.condition}`
      : broken.length === 0 ? "all running" : `${state.workspaces.length - broken.length} of ${state.workspaces.length} running`);
    const stopped = workspace?.condition === "stopped";
    tab.classList.toggle("stopped", stopped);
    tab.classList.toggle("broken", !stopped && (workspace ? !workspace.running : broken.length > 0));
  }
}

let summary = null;
async function press(path) {
  clearTimeout(summary);
  try {
    const response = await fetch(path, { method: "POST" });
    const said = await response.json();
    $("status").classList.toggle("refused", !said.done);
    $("status").textContent = said.text + (said.text.endsWith(".") ? "" : ".");
    if (!path.startsWith("/load")) summary = setTimeout(summarize, 6_000);
  } catch {
    $("status").classList.add("refused");
    $("status").textContent = "The playground does not answer.";
  }
}

/** Says what a press has cost, once. Numbers that change all the time are not announced. */
function summarize() {
  const before = state?.press;
  if (!before) return;
  const said = LANES.map((name, lane) => {
    const since = (key, what) => {
      const n = state.counters[lane][key] - before.counters[lane][key];
      return `${number.format(n)} ${what}${n === 1 ? "" : "s"}`;
    };
    return `${name}: ${since("slow", "slow turn")}, ${since("reads", "resolver read")}`;
  });
  $("status").textContent = `Since “${before.label}”: ${said.join("; ")}.`;
}

const paths = {
  rebuild: () => `/workspaces/${place}/rebuild`,
  kill: () => `/workspaces/${place}/kill`,
  freeze: () => `/workspaces/${place}/${$("freeze").textContent === "Thaw" ? "thaw" : "freeze"}`,
  "black-hole": () => `/workspaces/${place}/${$("black-hole").textContent === "Answer" ? "answer" : "black-hole"}`,
  stop: () => `/workspaces/${place}/stop`,
  start: () => `/workspaces/${place}/start`,
  retarget: () => `/workspaces/${place}/retarget`,
  database: () => `/database/${state.database === "down" ? "up" : "down"}`,
  storm: () => "/storm",
  load: () => `/load/${state.load === "paused" ? "run" : "pause"}`,
};
for (const [id, path] of Object.entries(paths)) {
  $(id).addEventListener("click", () => { if (state) press(path()); });
}

// ---- pictures

let colors = {};
function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "soft", "line", "grid", "card", "accent", "lane-0", "lane-1", "lane-2", "plain", "first", "switched", "confirmed", "failed"]) {
    colors[name] = style.getPropertyValue(`--${name}`).trim();
  }
}
readColors();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColors(); draw(); });

const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const LEFT = 46, RIGHT = 4;

function surface(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = FONT;
  context.textBaseline = "middle";
  return { context, width, height };
}

/** The vertical place of a duration, on a logarithmic scale. */
function level(ms, height, top, bottom) {
  const part = Math.log(Math.min(Math.max(ms, FLOOR), CEILING) / FLOOR) / Math.log(CEILING / FLOOR);
  return height - bottom - part * (height - top - bottom);
}

function frame({ context, width, height }, top, bottom, span, now) {
  context.textAlign = "right";
  context.lineWidth = 1;
  for (const [ms, label] of TICKS) {
    const y = Math.round(level(ms, height, top, bottom)) + 0.5;
    context.strokeStyle = colors.grid;
    context.beginPath();
    context.moveTo(LEFT, y);
    context.lineTo(width - RIGHT, y);
    context.stroke();
    context.fillStyle = colors.soft;
    context.fillText(label, LEFT - 7, y);
  }
  const slow = Math.round(level(slowFrom, height, top, bottom)) + 0.5;
  context.strokeStyle = colors.soft;
  context.setLineDash([3, 4]);
  context.beginPath();
  context.moveTo(LEFT, slow);
  context.lineTo(width - RIGHT, slow);
  context.stroke();
  for (const press of presses) {
    const x = Math.round(across(press.at, width, span, now)) + 0.5;
    if (x < LEFT) continue;
    context.strokeStyle = colors.accent;
    context.beginPath();
    context.moveTo(x, 2);
    context.lineTo(x, height - bottom);
    context.stroke();
  }
  context.setLineDash([]);
}

function across(at, width, span, now) {
  return width - RIGHT - ((now - at) / span) * (width - RIGHT - LEFT);
}

const strips = [0, 1, 2].map((lane) => $(`strip-${lane}`));
const TOP = 12, BOTTOM = 16;

const KINDS = {
  reused: "plain", answered: "plain", first_bind: "first", switched: "switched",
  confirmed: "confirmed", redialed: "confirmed", failed: "failed",
};

function mark(context, kind, x, y, large) {
  context.beginPath();
  if (kind === "failed") {
    context.moveTo(x - 3, y - 3); context.lineTo(x + 3, y + 3);
    context.moveTo(x + 3, y - 3); context.lineTo(x - 3, y + 3);
    context.stroke();
  } else if (kind === "switched") {
    const half = large ? 6 : 3.6;
    context.moveTo(x, y - half); context.lineTo(x + half, y); context.lineTo(x, y + half); context.lineTo(x - half, y);
    context.fill();
  } else if (kind === "confirmed") {
    context.rect(x - 3.5, y - 3.5, 7, 7);
    context.fill();
  } else if (kind === "first") {
    context.arc(x, y, 2.6, 0, 7);
    context.stroke();
  } else {
    context.arc(x, y, 2.2, 0, 7);
    context.fill();
  }
}

function drawStrip(lane, now) {
  const drawn = surface(strips[lane].firstElementChild);
  const { context, width, height } = drawn;
  frame(drawn, TOP, BOTTOM, WINDOW, now);
  // Plain turns first, so that the others lie above them.
  for (const kind of ["plain", "first", "confirmed", "failed", "switched"]) {
    context.fillStyle = context.strokeStyle = colors[kind];
    context.lineWidth = kind === "failed" ? 1.8 : 1.4;
    for (const turn of turns[lane]) {
      if (KINDS[turn.outcome] !== kind) continue;
      const x = across(turn.began + turn.took, width, WINDOW, now);
      if (x >= LEFT && x <= width) mark(context, kind, x, level(turn.took, height, TOP, BOTTOM), turn.took >= slowFrom);
    }
  }
  if (chosen?.lane === lane) {
    const x = across(chosen.turn.began + chosen.turn.took, width, WINDOW, now);
    if (x >= LEFT) {
      context.strokeStyle = colors.ink;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, level(chosen.turn.took, height, TOP, BOTTOM), 9, 0, 7);
      context.stroke();
    }
  }
  context.fillStyle = colors.soft;
  const narrow = width < 500;
  for (let seconds = 0; seconds <= 30; seconds += narrow ? 10 : 5) {
    context.textAlign = seconds === 0 ? "right" : "center";
    const x = across(now - seconds * 1_000, width, WINDOW, now);
    if (x > LEFT + 12) context.fillText(seconds === 0 ? "now" : `−${seconds} s`, x, height - 5);
  }
  context.textAlign = "left";
  const slow = level(slowFrom, height, TOP, BOTTOM);
  label(context, "slow", LEFT + 4, slow - 7);
  for (const press of presses) {
    const x = across(press.at, width, WINDOW, now);
    if (lane !== 0 || x < LEFT) continue;
    context.fillStyle = colors.accent;
    const wide = context.measureText(press.label).width;
    context.fillText(press.label, x + 4 + wide < width ? x + 4 : x - 4 - wide, 7);
  }
}

function label(context, text, x, y) {
  context.fillStyle = colors.soft;
  context.fillText(text, x, y);
}

function drawLatency(now) {
  const drawn = surface($("latency"));
  const { context, width, height } = drawn;
  frame(drawn, 10, 18, LATENCY_WINDOW, now);
  const dashes = [[], [6, 3], [2, 3]];
  for (const lane of [2, 1, 0]) {
    context.strokeStyle = colors[`lane-${lane}`];
    context.lineWidth = lane === 0 ? 2.4 : 2;
    context.setLineDash(dashes[lane]);
    context.lineJoin = "round";
    context.beginPath();
    let last = null;
    const seconds = [...slowest[lane].keys()].sort((a, b) => a - b);
    for (const second of seconds) {
      const x = across(second * 1_000 + 1_000, width, LATENCY_WINDOW, now);
      if (x < LEFT || x > width) continue;
      const y = level(slowest[lane].get(second), height, 10, 18);
      if (last !== null && second - last <= 3) context.lineTo(x, y);
      else context.moveTo(x, y);
      last = second;
    }
    context.stroke();
  }
  context.setLineDash([]);
  context.fillStyle = colors.soft;
  for (let seconds = 0; seconds <= 60; seconds += 15) {
    context.textAlign = seconds === 0 ? "right" : "center";
    const x = across(now - seconds * 1_000, width, LATENCY_WINDOW, now);
    if (x > LEFT + 12) context.fillText(seconds === 0 ? "now" : `−${seconds} s`, x, height - 5);
  }
  context.textAlign = "left";
  label(context, "slow", LEFT + 4, level(slowFrom, height, 10, 18) - 7);
}

function showLatencyText() {
  const now = Math.floor(time() / 1_000);
  const said = LANES.map((name, lane) => {
    let most = 0;
    for (const [second, ms] of slowest[lane]) if (second >= now - 10) most = Math.max(most, ms);
    return `${name} ${milliseconds(most)}`;
  });
  put($("latency-text"), `Of the last ten seconds: ${said.join(", ")}.`);
}

function draw() {
  const now = time();
  for (const lane of [0, 1, 2]) drawStrip(lane, now);
  drawLatency(now);
}

let drawnAt = 0;
function animate(at) {
  // Twenty pictures a second are smooth at this speed.
  if (at - drawnAt >= 48 && !still.matches) {
    drawnAt = at;
    draw();
  }
  requestAnimationFrame(animate);
}
requestAnimationFrame(animate);
new ResizeObserver(draw).observe(document.body);

// ---- a turn and its race

const words = { first_bind: "first bind" };
function describe(lane, turn) {
  return `${words[turn.outcome] ?? turn.outcome} after ${milliseconds(turn.took)}, chat ${turn.chat} in ${turn.workspace}`;
}

function follow(turn) {
  choose(0, turn);
  // The repair is written after the turn.
  setTimeout(() => { if (followed && chosen?.turn === turn) showRace(); }, 400);
}

function choose(lane, turn) {
  chosen = { lane, turn };
  const strip = strips[lane];
  strip.setAttribute("aria-valuemax", Math.max(0, turns[lane].length - 1));
  strip.setAttribute("aria-valuenow", Math.max(0, turns[lane].indexOf(turn)));
  strip.setAttribute("aria-valuetext", describe(lane, turn));
  showRace();
}

let asked = 0;
async function showRace() {
  const { lane, turn } = chosen;
  const question = ++asked;
  let race = null;
  try {
    race = await (await fetch(`/turns/${turn.id}`)).json();
  } catch {
    return; // the page says that the connection is lost
  }
  if (question !== asked) return;
  $("follow").hidden = followed;
  if (race === null) {
    $("race-text").textContent = "This turn is not kept any more.";
    $("race").replaceChildren();
    $("race-facts").replaceChildren();
    return;
  }
  put($("race-title"), `A turn of chat ${race.chat} in ${race.workspace}, ${LANES[lane]}`);
  const how = race.outcome === "failed" ? `Failed after ${milliseconds(race.took)}: ${race.error}.`
    : `${(words[race.outcome] ?? race.outcome).replace(/^./, (first) => first.toUpperCase())} after ${milliseconds(race.took)}, by ${race.build}.`;
  put($("race-text"), how);
  const steps = [...race.steps];
  const asksLate = steps.some((step) => step.kind === "validation" && step.from >= race.delay - 5);
  if (race.delay !== null && asksLate) {
    const dial = steps.findIndex((step) => step.kind === "dial");
    steps.splice(dial + 1, 0, { kind: "delay", what: "validation delay", from: 0, to: race.delay, result: "", good: true });
  }
  const end = Math.max(race.took, ...steps.map((step) => step.to), 1);
  $("race").replaceChildren(...steps.map((step) => {
    const bar = make("span", { class: "bar" });
    const from = Math.max(0, step.from);
    bar.style.left = `min(${(from / end) * 100}%, 100% - 4px)`;
    if (step.kind !== "switch") bar.style.width = `${((step.to - from) / end) * 100}%`;
    const took = step.to - step.from;
    const times = step.kind === "switch" || step.kind === "repair" ? `at ${milliseconds(step.to)}`
      : step.kind === "delay" ? milliseconds(took)
      : `${milliseconds(from)} – ${milliseconds(step.to)}`;
    return make("li", { class: `${step.kind} ${step.good ? "good" : "bad"}` },
      make("span", { class: "what" }, step.what),
      make("span", { class: "result" }, step.result ? `${step.result} · ${times}` : times),
      make("span", { class: "track", "aria-hidden": "true" }, bar));
  }));
  const facts = race.call ? [["dials", race.call.dials], ["validations", race.call.validations],
    ["decided in", milliseconds(race.call.decided_in)], ["dialed in", milliseconds(race.call.dialed_in)], ["repair", race.call.repair]] : [];
  $("race-facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
}

$("follow").addEventListener("click", () => {
  followed = true;
  const last = turns[0].findLast((turn) => turn.took >= slowFrom);
  if (last) choose(0, last);
  $("follow").hidden = true;
  strips[0].focus();
});

function visible(lane) {
  const now = time();
  return turns[lane].filter((turn) => turn.began + turn.took >= now - WINDOW && turn.began + turn.took <= now + LATE);
}

function nearest(lane, x, y) {
  const { clientWidth: width, clientHeight: height } = strips[lane].firstElementChild;
  const now = time();
  let best = null, distance = 24 * 24;
  for (const turn of turns[lane]) {
    const dx = across(turn.began + turn.took, width, WINDOW, now) - x;
    const dy = level(turn.took, height, TOP, BOTTOM) - y;
    if (dx * dx + dy * dy < distance) [best, distance] = [turn, dx * dx + dy * dy];
  }
  return best;
}

strips.forEach((strip, lane) => {
  strip.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect();
    const turn = nearest(lane, event.clientX - box.left, event.clientY - box.top);
    if (turn) { followed = false; choose(lane, turn); }
  });
  strip.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const list = visible(lane);
    const at = chosen?.lane === lane ? list.indexOf(chosen.turn) : -1;
    const bad = (turn) => turn.took >= slowFrom || turn.outcome === "failed" || turn.outcome === "switched";
    let turn = null;
    switch (event.key) {
      case "ArrowLeft": turn = list[at < 0 ? list.length - 1 : Math.max(0, at - 1)]; break;
      case "ArrowRight": turn = list[at < 0 ? list.length - 1 : Math.min(list.length - 1, at + 1)]; break;
      case "Home": turn = list[0]; break;
      case "End": turn = list[list.length - 1]; break;
      case "PageUp": turn = list.slice(0, at < 0 ? list.length : at).findLast(bad); break;
      case "PageDown": turn = list.slice(at + 1).find(bad); break;
      case "ArrowUp": case "ArrowDown": {
        const next = lane + (event.key === "ArrowUp" ? -1 : 1);
        event.preventDefault();
        if (!strips[next]) return;
        strips[next].focus();
        if (chosen) {
          const end = chosen.turn.began + chosen.turn.took;
          const near = visible(next).reduce((best, turn) =>
            !best || Math.abs(turn.began + turn.took - end) < Math.abs(best.began + best.took - end) ? turn : best, null);
          if (near) { followed = false; choose(next, near); }
        }
        return;
      }
      default: return;
    }
    event.preventDefault();
    if (turn) { followed = false; choose(lane, turn); }
  });
});
