/** The screening page: a record, its outlined target, a verdict; then the next one. */
import { Trouble, getBlob, getJson, postJson } from "./api.js";
import { announce, byId, el, icon } from "./dom.js";
import { Viewer } from "./viewer.js";

const FACETS = ["category", "modality", "perspective", "writer", "kind", "split"];
const NAME = "medisee-screener";
const DONE = { keep: "Kept", edit: "Edited", drop: "Dropped", skip: "Skipped" };
const KEYS = { k: "keep", e: "edit", d: "drop", s: "skip", ArrowLeft: "back", Backspace: "back" };

const viewer = new Viewer((index) => viewer.focus(index));

let name = localStorage.getItem(NAME) ?? "";
/** Ids of the records that were seen, in order, and the one that is on the page. */
const seen = [];
let at = -1;
let record = null;
let working = null; // the promise of what is being done

// Records

const wanted = () =>
  Object.fromEntries(FACETS.map((facet) => [facet, byId(`filter-${facet}`).value]).filter(([, value]) => value));

/** Goes to the record after this one: one that was seen before, else a new one. */
async function forward() {
  if (at + 1 < seen.length) {
    at += 1;
    return fetchSeen();
  }
  const query = new URLSearchParams({ name, ...wanted() });
  const answer = await getJson(`v1/next?${query}`);
  showProgress(answer.progress);
  if (answer.record) {
    seen.push(answer.record.id);
    at = seen.length - 1;
  } else {
    at = seen.length;
  }
  return show(answer.record);
}

async function fetchSeen() {
  const query = new URLSearchParams({ name });
  await show((await getJson(`v1/records/${encodeURIComponent(seen[at])}?${query}`)).record);
}

async function show(next) {
  record = next;
  document.body.dataset.state = next ? "record" : "done";
  byId("record").hidden = !next;
  byId("done").hidden = Boolean(next);
  edit(false);
  viewer.clear();
  setActions();
  if (!next) return announce("Nothing is left here.");
  fill(next);
  announce(`${next.question} Answer: ${next.answer}`);
  return next.flaw ? say("The image cannot be shown", next.flaw) : draw(next);
}

function fill(shown) {
  const words = shown.own?.decision === "edit" ? shown.own : shown;
  byId("question").textContent = words.question;
  byId("answer").textContent = words.answer;
  byId("note").value = shown.own?.note ?? "";
  byId("history").replaceChildren(...shown.history.map(earlierRound));
  const shared = shown.shared ? el("li", { class: "shared" }, "judged by everybody") : null;
  const labels = shown.targets.map((target) => el("li", { class: "target" }, target.label));
  const facts = [shown.refusal?.replaceAll("_", " "), shown.kind, shown.modality, shown.perspective, shown.length];
  byId("facts").replaceChildren(
    ...labels,
    ...facts.filter(Boolean).map((fact) => el("li", {}, fact)),
    ...(shared ? [shared] : []),
  );
  byId("earlier").textContent = shown.own
    ? `${DONE[shown.own.decision]} by you before; another verdict replaces that one.`
    : "";
  byId("panel").scrollTop = 0;
}

const earlierRound = (turn) =>
  el("div", { class: "turn" }, el("p", { class: "turn-question" }, turn.question), el("p", {}, turn.answer));

async function draw(shown) {
  const picture = await getBlob(`v1/records/${encodeURIComponent(shown.id)}/image.png`);
  const bitmap = await createImageBitmap(picture);
  if (record !== shown) return;
  const image = { ...shown.size, spacing_mm: null, orientation: null };
  viewer.show(bitmap, image);
  viewer.draw({ image, findings: shown.targets.map((target) => ({ ...target, area_mm2: null })) });
  byId("image").setAttribute("aria-label", `The image of this record, ${shown.modality ?? "kind not stated"}`);
}

// Verdicts

/** Keeps a verdict on the server, then goes on; on failure stays where it is and says so. */
async function judge(decision, words = {}) {
  if (!record) return;
  const note = byId("note").value.trim();
  const body = { id: record.id, name, decision, note, filter: wanted(), ...words };
  const answer = await (await postJson("v1/verdicts", body)).json();
  showProgress(answer.progress);
  announce(DONE[decision]);
  await forward();
}

async function back() {
  if (at <= 0) return;
  at -= 1;
  await fetchSeen();
}

/** One thing at a time, so that no key counts twice. */
function run(task) {
  byId("panel").ariaBusy = "true";
  working ??= attempt(task).finally(() => {
    working = null;
    byId("panel").ariaBusy = "false";
    setActions();
  });
  return working;
}

/** What fails is said, and can be tried again. */
async function attempt(task) {
  byId("trouble").replaceChildren();
  try {
    await task();
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    const kept = "What you did last was not saved; everything before is. Try it again.";
    if (error.kind === "lost") say("The server cannot be reached", kept);
    else say("That did not work", error.message);
  }
}

function say(title, words) {
  const card = el(
    "div",
    { class: "card trouble", role: "alert" },
    icon("alert"),
    el("div", {}, el("h4", {}, title), el("p", {}, words)),
  );
  byId("trouble").replaceChildren(card);
}

function setActions() {
  for (const button of byId("actions").children) {
    const { decision } = button.dataset;
    button.disabled = decision === "back" ? at <= 0 : !record;
    button.classList.toggle("was", record?.own?.decision === decision);
  }
}

function edit(on) {
  byId("edit").hidden = byId("edit-actions").hidden = !on;
  byId("actions").hidden = on;
  for (const node of document.querySelectorAll(".words")) node.hidden = on;
  if (!on) return;
  byId("edit-question").value = byId("question").textContent;
  byId("edit-answer").value = byId("answer").textContent;
  byId("edit-question").focus();
}

function saveEdit() {
  const question = byId("edit-question").value.trim();
  if (!question) return say("The question is empty", "Write one, or cancel and drop the record.");
  return run(() => judge("edit", { question, answer: byId("edit-answer").value.trim() }));
}

function act(decision) {
  if (decision === "back") run(back);
  else if (decision === "edit") record && edit(true);
  else run(() => judge(decision));
}

// Progress, names, filters

function showProgress({ total, own, all, agreement }) {
  const number = (value) => value.toLocaleString("en");
  byId("progress").textContent = `${number(own)} by you, ${number(all)} of ${number(total)} judged`;
  byId("bar").max = Math.max(total, 1);
  byId("bar").value = all;
  const mine = agreement.filter((pair) => pair.common);
  byId("agreement").textContent = mine.length
    ? mine.map(inWords).join(" \u00b7 ")
    : "Agreement shows once two people have judged the same record.";
}

function inWords({ screeners, common, same, kappa }) {
  const value = kappa === null ? "not defined yet" : kappa.toFixed(2);
  return `${screeners.join(" and ")}: Cohen\u2019s kappa ${value}, the same on ${same} of ${common}`;
}

function askName() {
  const dialog = byId("name-dialog");
  byId("name").value = name;
  dialog.showModal();
  dialog.addEventListener("close", () => takeName(byId("name").value.trim()), { once: true });
}

function takeName(given) {
  if (!given && !name) return askName();
  if (given && given !== name) {
    name = given;
    localStorage.setItem(NAME, name);
    seen.length = 0;
    at = -1;
  }
  byId("name-shown").textContent = name;
  return run(forward);
}

async function buildFilters() {
  const { facets } = await getJson("v1/set");
  byId("filters").replaceChildren(...FACETS.map((facet) => filterField(facet, facets[facet])));
}

function filterField(facet, values) {
  const options = Object.entries(values).map(([value, count]) =>
    el("option", { value }, `${value} (${count.toLocaleString("en")})`),
  );
  const choice = el(
    "select",
    { id: `filter-${facet}`, onchange: chooseAnew },
    el("option", { value: "" }, "all"),
    ...options,
  );
  return el("label", { hidden: options.length < 2 }, el("span", {}, facet), choice);
}

/** With another choice, the record on the page gives way to one that fits. */
async function chooseAnew() {
  await working;
  run(() => {
    at = seen.length - 1;
    return forward();
  });
}

// Keys

function key(event) {
  const { target } = event;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !byId("edit").hidden) {
    event.preventDefault();
    return saveEdit();
  }
  if (event.key === "Escape" && !byId("edit").hidden) {
    edit(false);
    return byId("panel").focus();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || !byId("keys").checked) return undefined;
  if (target.closest("input, textarea, select, dialog")) return undefined;
  const decision = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  const pans = target === viewer.stage && viewer.zoom > 1;
  if (!decision || !byId("edit").hidden || (event.key === "ArrowLeft" && pans)) return undefined;
  event.preventDefault();
  return act(decision);
}

document.addEventListener("keydown", key, { capture: true });
for (const button of byId("actions").children) {
  button.addEventListener("click", () => act(button.dataset.decision));
}
byId("save").addEventListener("click", saveEdit);
byId("cancel").addEventListener("click", () => edit(false));
byId("who").addEventListener("click", askName);
byId("note").addEventListener("keydown", (event) => event.key === "Enter" && event.target.blur());

run(buildFilters).then(() => (name ? takeName(name) : askName()));
