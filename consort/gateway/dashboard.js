"use strict";
const $ = (id) => document.getElementById(id);

// ---- words and numbers
const seconds = (s) => s == null ? "–" : s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`;
const size = (b) => b < 1000 ? `${b} B` : b < 1e6 ? `${(b / 1e3).toFixed(1)} kB` : `${(b / 1e6).toFixed(1)} MB`;
const money = (m) => m === 0 ? "0" : m < 1 ? m.toPrecision(2) : m.toFixed(2);
const kinds = (counts) => Object.entries(counts).map(([kind, n]) => `${n} ${kind.replaceAll("_", " ")}`).join(", ");
const decisions = (notes) => notes.filter((n) => n.strategy !== "redact")
  .map((n) => `${n.strategy} ${n.event}` + (n.score == null ? "" : ` at ${n.score.toFixed(2)}`)
    + (n.drafted ? `, ${n.accepted} of ${n.drafted} tokens accepted` : "")
    + (n.drafted === 0 ? ` nothing: ${n.undrafted}` : ""));
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

// ---- authors: one colour and one kind of line each, in the order of the models
const authors = [];
function author(name) {
  if (!authors.includes(name)) authors.push(name);
  return `author a${authors.indexOf(name) % 6}`;
}

// ---- pieces of the page
function element(name, text, className = "") {
  const made = document.createElement(name);
  if (text != null) made.textContent = text;
  if (className) made.className = className;
  return made;
}
function row(labels, cells) {
  const made = element("tr");
  made.setAttribute("role", "row");
  cells.forEach((cell, i) => {
    const td = element(i ? "td" : "th", cell instanceof Node ? null : cell, labels[i].endsWith("#") ? "number" : "");
    td.setAttribute("role", i ? "cell" : "rowheader");
    td.dataset.label = labels[i].replace("#", "");
    if (cell instanceof Node) td.append(cell);
    made.append(td);
  });
  return made;
}
function bar(spans) {
  const made = element("div", null, "bar");
  made.setAttribute("role", "img");
  made.title = spans.map(([who, bytes]) => `${who} ${size(bytes)}`).join(", ") || "nothing";
  made.setAttribute("aria-label", made.title);
  for (const [who, bytes] of spans) {
    const part = element("span", null, author(who));
    part.style.flexGrow = bytes;
    made.append(part);
  }
  return made;
}
const twoLines = (large, small) => [large, element("small", small)];
const shown = new Map();  // what stands there is replaced only when it changes: a reader may be reading it
function replace(id, key, make) {
  const now = JSON.stringify(key);
  if (shown.get(id) !== now) $(id).replaceChildren(...make());
  shown.set(id, now);
}

// ---- what the gateway does
function show(now) {
  $("summary").textContent = `${now.requests} answers, ${now.in_flight} being written; “consort” means ${now.strategy}`;
  $("share").textContent = now.edge_share == null ? "–" : `${Math.round(now.edge_share * 100)} %`;
  $("latency").replaceChildren(...twoLines(seconds(now.p50_s), `95 % within ${seconds(now.p95_s)}`));
  $("cost").replaceChildren(...(now.cost_all_cloud > 0
    ? twoLines(`${money(now.cost)} ${now.currency}`, `${money(now.cost_all_cloud)} all by the cloud`)
    : twoLines("–", "no price is configured")));
  $("bytes").textContent = size(now.cloud_bytes);
  $("hidden").replaceChildren(...twoLines(sum(Object.values(now.redactions)), kinds(now.redactions)));
  marks(now);
  replace("models", now.models, () => now.models.map((m) => row(
    ["Model", "Where", "State", "Requests#", "Failures#", "First word#", "Answer#"],
    [element("span", m.name, author(m.name)), m.side, element("span", m.in_flight ? `${m.state} (${m.in_flight})` : m.state, `state ${m.state}`),
      m.requests, m.failures, seconds(m.first_s), seconds(m.answer_s)])));
  $("nothing").hidden = now.recent.length > 0;
  $("recent-table").hidden = now.recent.length === 0;
  replace("recent", now.recent.map((r) => r.id), () => now.recent.map((r) => row(
    ["When", "Strategy", "Who wrote it", "Decisions", "To the cloud#", "Time#"],
    [new Date(r.at * 1000).toLocaleTimeString(), r.strategy, bar(r.spans), outcome(r), size(r.cloud_bytes), seconds(r.latency_s)])));
}
function outcome(r) {
  const words = [...decisions(r.notes), ...(kinds(r.redactions) ? [`${kinds(r.redactions)} hidden`] : [])];
  if (r.outcome === "done") return words.join(", ") || "–";
  const made = element("span", words.length ? `${words.join(", ")}, ` : "");
  made.append(element("span", r.outcome.replaceAll("_", " "), "error"));
  return made;
}
function marks({ drift, shadow }) {  // of a calibrated scorer, of shadow labels: there only where they are on
  $("drift-mark").hidden = !drift;
  $("drift-mark").classList.toggle("ringing", Boolean(drift?.ringing));
  if (drift) $("drift").replaceChildren(...(drift.ringing
    ? twoLines("⚠ alarm", "the questions have changed: calibrate anew")
    : twoLines("none seen", `in ${drift.requests} requests`)));
  $("labels-mark").hidden = !shadow;
  if (shadow) $("labels").replaceChildren(...twoLines(shadow.labels, `${money(shadow.spent)} of ${money(shadow.budget)} spent`));
}
const headers = () => {
  const key = sessionStorage.getItem("key");
  return key ? { Authorization: `Bearer ${key}` } : {};
};
async function refresh() {
  try {
    const response = await fetch("/overview", { headers: headers() });
    $("door").hidden = response.status !== 401;
    if (response.ok) show(await response.json());
    else $("summary").textContent = response.status === 401 ? "a key is needed" : `the gateway answered ${response.status}`;
  } catch { $("summary").textContent = "the gateway does not answer"; }
}
async function loop() {
  if (!document.hidden) await refresh();
  setTimeout(loop, 1000);
}
async function models() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) return;
  $("model").replaceChildren(...(await response.json()).data.map((m) => element("option", m.id)));
  $("model").value = "consort";
}

// ---- one answer: spans of one author grow, another author begins another, even after a single token
function write(name, text) {
  let last = $("answer").lastElementChild;
  if (!last || last.dataset.author !== name) {
    last = element("span", null, author(name));
    last.dataset.author = name;
    last.title = name;
    last.append(element("span", ` ${name}: `, "unseen"), "");
    $("answer").append(last);
  }
  last.lastChild.data += text;
}
// what was drafted and is not in the answer: seen as it happens, then it folds up; not read aloud
function strike(text) {
  const struck = element("del", text, "struck");
  struck.setAttribute("aria-hidden", "true");
  struck.title = "drafted, refused";
  $("answer").append(struck);
}
function legend(spans) {
  const written = new Map();
  for (const [name, bytes] of spans) written.set(name, (written.get(name) ?? 0) + bytes);
  $("authors").replaceChildren(...[...written].map(([name, bytes]) => {
    const item = element("li");
    item.append(element("span", name, author(name)), ` ${size(bytes)}`);
    return item;
  }));
}
function receipt(r) {
  legend(r.spans);
  const hidden = kinds(r.redactions);
  $("told").textContent = [...decisions(r.notes), ...(hidden ? [`${hidden} hidden`] : []),
    `${r.edge_tokens} tokens at the edge`, `${r.cloud_tokens} in the cloud`, `${size(r.cloud_bytes)} sent there`,
    seconds(r.latency_s)].join(", ");
}
const failed = (words) => $("answer").append(element("span", words, "error"));
function piece(event) {
  if (event.error) return failed(`\n${event.error.message}`);
  if (event.consort?.receipt) receipt(event.consort.receipt);
  if (event.consort?.anew) $("answer").replaceChildren();
  const text = event.choices[0]?.delta?.content;
  if (text) write(event.model, text);
  if (event.consort?.struck) strike(event.consort.struck);
}
async function stream(body) {
  const response = await fetch("/v1/chat/completions",
    { method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, body: JSON.stringify(body) });
  if (!response.ok) return failed((await response.json()).error.message);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const line of events) if (line !== "data: [DONE]") piece(JSON.parse(line.slice(6)));
  }
}
async function ask(event) {
  event.preventDefault();
  if ($("send").disabled) return;
  $("send").disabled = true;
  $("answer").replaceChildren();
  $("authors").replaceChildren();
  $("told").textContent = "being written…";
  $("answer").setAttribute("aria-busy", "true");
  const asked = { receipt: true, private: $("private").checked };
  if ($("redact").checked) asked.redact = true;
  try {
    await stream({ model: $("model").value, stream: true, temperature: 0, consort: asked,
                   messages: [{ role: "user", content: $("question").value }] });
  } catch { failed("the gateway does not answer"); }
  if ($("told").textContent === "being written…") $("told").textContent = "no answer";
  $("answer").setAttribute("aria-busy", "false");
  $("send").disabled = false;
  refresh();
}
$("ask").addEventListener("submit", ask);
$("question").addEventListener("keydown", (e) => { if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) $("ask").requestSubmit(); });
$("key-form").addEventListener("submit", (e) => {
  e.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  $("key").value = "";
  models();
  refresh();
});
models();
loop();
