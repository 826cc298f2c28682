// The page for choosing modules. Text from the model is always inserted as text, never as markup.

import { Item, shortCount } from "./items.js";
import { Rows } from "./rows.js";

const PAUSE = 120; // milliseconds without a change before a request
const $ = (id) => document.getElementById(id);
const chosen = new Set(); // real names
let tree = null;
let rows = null;
let asked = 0; // number of the latest request; responses to earlier ones are ignored
let timer = 0;
let line = null; // open as long as this page; the server notices when it closes

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function state(name) {
  document.body.dataset.state = name;
}

async function post(what) {
  const body = JSON.stringify({ names: [...chosen], type: $("type").value });
  const answer = await fetch(what, { method: "POST", headers: { "Content-Type": "application/json" }, body });
  if (!answer.ok && answer.status !== 400) throw new Error(await answer.text());
  return answer.json();
}

// ----- choosing -----

function toggle(item) {
  const all = item.checked(chosen) === "true";
  for (const { name } of item.scope) all ? chosen.delete(name) : chosen.add(name);
  changed();
}

function changed() {
  rows.refresh();
  $("clear").disabled = chosen.size === 0;
  $("submit").disabled = true;
  state("asking");
  clearTimeout(timer);
  timer = setTimeout(ask, PAUSE);
}

async function ask() {
  const mine = ++asked;
  try {
    const answer = await post("preview");
    if (mine === asked) show(answer);
  } catch {
    if (mine === asked) lost();
  }
}

function show(answer) {
  const refused = answer.refusal !== undefined;
  const nothing = chosen.size === 0;
  $("refusal").hidden = !refused || nothing;
  $("refusal").textContent = refused && !nothing ? answer.refusal : "";
  $("submit").disabled = refused;
  $("passed").hidden = refused;
  $("line").textContent = answer.line ?? "";
  $("places").hidden = refused;
  $("places").replaceChildren(...(answer.places ?? []).map(place));
  $("sum").replaceChildren(...(nothing ? ["Nothing chosen yet."] : refused ? [] : sum(answer)));
  state(nothing ? "ready" : refused ? "refused" : "ready");
}

function place({ pattern, count }) {
  const shown = element("li");
  shown.append(element("code", "", pattern));
  if (count > 1) shown.append(" ", element("span", "count", `× ${count}`));
  return shown;
}

function sum({ modules, parameters }) {
  const share = ((100 * parameters) / tree.total).toPrecision(2);
  return [
    element("b", "figure", parameters.toLocaleString("en")),
    ` trainable parameters in ${modules.toLocaleString("en")} ${modules === 1 ? "module" : "modules"}: `,
    `${Number(share)}% of the model's ${shortCount(tree.total)}`,
  ];
}

// ----- searching -----

function search() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter(words, tree.common);
  $("take").hidden = found.length === 0;
  $("found").textContent = words.length === 0 ? "" : `${found.length || "No"} ${found.length === 1 ? "module matches" : "modules match"}.`;
  $("take").onclick = () => {
    for (const name of found) chosen.add(name);
    changed();
  };
}

// ----- finishing -----

function end(outcome, after, kept) {
  line.close();
  state("over");
  $("work").hidden = true;
  $("lead").hidden = true;
  $("lost").hidden = true;
  $("done").hidden = false;
  $("outcome").textContent = outcome;
  $("after").textContent = after;
  $("kept").hidden = !kept;
  $("kept").textContent = kept ?? "";
  $("outcome").focus();
}

async function submit() {
  clearTimeout(timer);
  ++asked;
  $("submit").disabled = true;
  try {
    const answer = await post("submit");
    if (answer.refusal !== undefined) show(answer);
    else end("Chosen.", "The program continues. You can close this page.", answer.line);
  } catch {
    lost();
  }
}

async function cancel() {
  try {
    const answer = await post("cancel");
    if (answer.refusal !== undefined) end("Closed.", answer.refusal);
    else end("Cancelled.", "Nothing was chosen and nothing was changed. You can close this page.");
  } catch {
    lost();
  }
}

function lost() {
  state("lost");
  $("submit").disabled = true;
  $("lost").hidden = false;
  $("lost").textContent = "The program that waits for your choice does not answer. If it has exited, close this page and run it again.";
}

// ----- starting -----

async function start() {
  line = new EventSource("open");
  line.onerror = () => { if (document.body.dataset.state !== "over") lost(); };
  line.onopen = () => {
    document.body.dataset.line = "open";
    if (document.body.dataset.state !== "lost") return;
    $("lost").hidden = true;
    changed();
  };
  tree = await (await fetch("tree")).json();
  $("model").textContent = `in ${tree.title}`;
  $("type").replaceChildren(...tree.types.map((type) => element("option", "", type)));
  $("types").hidden = tree.types.length < 2;
  const roots = tree.children.map((node) => new Item(node, [...node.names.keys()], [""], null));
  rows = new Rows($("tree"), roots, chosen, toggle, tree.common);
  $("search").addEventListener("input", search);
  $("expand").addEventListener("click", () => rows.expandAll(true));
  $("collapse").addEventListener("click", () => rows.expandAll(false));
  $("type").addEventListener("change", changed);
  $("clear").addEventListener("click", () => { chosen.clear(); changed(); });
  $("submit").addEventListener("click", submit);
  $("cancel").addEventListener("click", cancel);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select")) return;
    event.preventDefault();
    $("search").focus();
  });
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") { event.preventDefault(); rows.focusFirst(); }
    if (event.key === "Escape") { $("search").value = ""; search(); }
  });
  changed();
}

start().catch(lost);
