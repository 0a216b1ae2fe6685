/** The page: brings an image in, asks about it, and keeps viewer and conversation together. */
import { Trouble, ask, closeSession, getBlob, getJson, openSession } from "./api.js";
import { announce, byId, el, icon, saveAs } from "./dom.js";
import { Round } from "./rounds.js";
import { Viewer } from "./viewer.js";
import { describeImage } from "./words.js";

/** The open picture: {source, name, choices, session, info, bitmap}; null at the beginning. */
let view = null;
/** The round whose findings are shown. */
let shown = null;
/** Stops the question that is being answered. */
let stop = null;

const viewer = new Viewer((index) => {
  viewer.focus(index);
  shown?.highlight(index);
});

// An image comes in

async function open(source, name, choices = {}) {
  const loading = byId("loading");
  const wait = setTimeout(() => (loading.hidden = false), 150);
  byId("loading-text").textContent = `Opening ${name}`;
  try {
    await use(await load(source, name, choices));
  } catch (error) {
    sayNotOpened(error, name, () => open(source, name, choices));
  } finally {
    clearTimeout(wait);
    loading.hidden = true;
  }
}

/** Posts the image and fetches what there is to look at. */
async function load(source, name, choices) {
  const { id, image, suggestions } = await openSession(source, choices);
  const picture = await getBlob(`v1/sessions/${id}/image.png`);
  const bitmap = await createImageBitmap(picture);
  return { source, name, choices, session: id, info: image, suggestions, bitmap, rounds: 0 };
}

/** Makes another picture the open one; its questions begin anew unless it is the same file. */
async function use(next) {
  stop?.abort();
  if (view && view.source !== next.source) byId("rounds").replaceChildren();
  if (view && !view.rounds) closeSession(view.session);
  view = next;
  turnTo("open");
  clearNotice();
  show(null);
  showChoices();
  suggest(view.suggestions);
  byId("question").focus({ preventScroll: true });
  announce(`${view.name} is open. ${describeImage(view.info)}.`);
}

/** Shows the picture and findings of a round; null for the bare picture of the open view. */
function show(round) {
  const picture = round?.view ?? view;
  if (shown?.element) shown.element.classList.remove("shown");
  if (viewer.bitmap !== picture.bitmap) {
    viewer.bitmap = picture.bitmap;
    viewer.show(picture.bitmap, picture.info);
  }
  shown = round;
  viewer.clear();
  if (round?.answer) viewer.draw(round.answer);
  round?.element.classList.add("shown");
  byId("what").replaceChildren(
    el("strong", {}, picture.name),
    el("span", {}, describeImage(picture.info)),
  );
  byId("image").setAttribute("aria-label", `${picture.name}, ${describeImage(picture.info)}`);
  setTools();
}

function sayNotOpened(error, name, again) {
  const trouble = error instanceof Trouble ? error : new Trouble("refused", "The image could not be shown.");
  const titles = {
    lost: "The server cannot be reached",
    busy: "The server is full at the moment",
    denied: "A token is needed",
  };
  const title = titles[trouble.kind] ?? `${name} could not be opened`;
  // The server knows no file's name, and calls each one "image".
  const words = sentence(trouble.message.replace(/^image: (is )?/, (_, is) => (is ? "It is " : "")));
  const way = el("button", { type: "button", class: "button small" }, "Try again");
  way.addEventListener("click", again);
  const other = el("button", { type: "button", class: "button small" }, "Choose another file");
  other.addEventListener("click", () => byId("file").click());
  const ways = trouble.kind === "refused" ? [other] : [way, other];
  const card = el(
    "div",
    { class: "card trouble", role: "alert" },
    icon("alert"),
    el("div", {}, el("h4", {}, title), el("p", {}, words), el("div", { class: "ways" }, ways)),
  );
  if (document.body.dataset.state === "open") notice(card);
  else byId("welcome-trouble").replaceChildren(card);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

/** A card above the conversation, when an image is open already. */
function notice(card) {
  clearNotice();
  card.id = "notice";
  byId("rounds").append(card);
  card.scrollIntoView({ block: "nearest" });
}

const clearNotice = () => byId("notice")?.remove();

/** The page where an image is chosen ("welcome"), or where it is asked about ("open"). */
function turnTo(state) {
  document.body.dataset.state = state;
  byId("back").hidden = state === "open" || !view;
  byId("welcome-trouble").replaceChildren();
}

// Slices, frames and windows

function showChoices() {
  const { info, choices } = view;
  const several = { slice: info.slices ?? 1, frame: info.frames ?? 1 };
  for (const [what, count] of Object.entries(several)) {
    byId(`${what}-field`).hidden = count < 2;
    byId(what).max = count - 1;
    byId(what).value = info[what] ?? choices[what] ?? 0;
    byId(`${what}-number`).textContent = `${Number(byId(what).value) + 1} of ${count}`;
  }
  byId("plane-field").hidden = !(info.slices && info.plane);
  byId("plane").value = choices.plane ?? "";
  byId("window-field").hidden = !info.grey;
  const known = [...byId("window").options].some((option) => option.value === (choices.window ?? ""));
  byId("window").value = known ? (choices.window ?? "") : "custom";
  byId("custom-field").hidden = byId("window").value !== "custom";
  const fields = ["slice", "frame", "plane", "window"].map((what) => byId(`${what}-field`));
  byId("slices").hidden = fields.every((field) => field.hidden);
}

/** Opens the same file once more with another choice; earlier rounds keep their picture. */
function choose(change) {
  open(view.source, view.name, { ...view.choices, ...change });
}

// Questions

function suggest(questions) {
  const chips = (questions ?? []).map((question) =>
    el("button", { type: "button", class: "chip", onclick: () => put(question) }, question),
  );
  byId("suggestions").replaceChildren(...chips);
}

async function put(question) {
  if (!view || stop) return;
  const round = new Round(question, view, handlers);
  byId("rounds").append(round.element);
  for (const chip of byId("suggestions").children) {
    if (chip.textContent === question) chip.remove();
  }
  clearNotice();
  show(round);
  round.element.scrollIntoView({ block: "start", behavior: "smooth" });
  await answer(round);
}

async function answer(round) {
  stop = new AbortController();
  setBusy(true);
  try {
    await converse(round, stop.signal);
  } catch (error) {
    fail(round, error);
  } finally {
    stop = null;
    setBusy(false);
  }
}

async function converse(round, signal) {
  const on = {
    answer: (found) => {
      round.show(found);
      if (shown === round) show(round);
    },
    text: (piece) => {
      round.addText(piece);
      follow(round);
    },
  };
  const whole = await ask(round.view.session, round.question, on, signal);
  round.view.rounds += 1;
  round.finish(whole.answer, whole.round);
  if (shown === round) show(round);
  follow(round);
}

/** Keeps the words that are being written in sight. */
function follow(round) {
  if (shown === round) round.body.lastElementChild.scrollIntoView({ block: "nearest" });
}

function fail(round, error) {
  if (error.name === "AbortError") round.fail("stopped", "");
  else if (error instanceof Trouble) round.fail(error.kind, sentence(error.message), error.retryAfter);
  else {
    round.fail("refused", "The page could not show the answer.");
    console.error(error);
  }
  follow(round);
}

const handlers = {
  select: (round) => shown !== round && show(round),
  focus: (round, index) => {
    if (shown !== round) show(round);
    viewer.focus(index);
    round.highlight(index);
    if (index !== null && byId("similarity").ariaPressed === "true") showHeat(index);
  },
  again: async (round) => {
    if (stop) return;
    round.element.remove();
    const gone = round.element.querySelector(".trouble.expired");
    if (gone && round.view === view) view = await reopened(view);
    if (view) await put(round.question);
  },
  save: async (round, file) => {
    const stem = round.view.name.replace(/(\.nii(\.gz)?|\.\w{1,5})$/i, "");
    try {
      saveAs(await fileOf(round, file), `${stem}.${round.number}.${file.replace("answer.", "")}`);
    } catch (error) {
      notice(downloadTrouble(error));
    }
  },
};

/** The same picture in a new session; where it cannot be had, the old one, which will say so. */
async function reopened(old) {
  try {
    return { ...(await load(old.source, old.name, old.choices)), bitmap: old.bitmap };
  } catch (error) {
    sayNotOpened(error, old.name, () => open(old.source, old.name, old.choices));
    return null;
  }
}

const fileOf = (round, file) =>
  getBlob(`v1/sessions/${round.view.session}/files/${file}?round=${round.number}`);

function downloadTrouble(error) {
  const words =
    error.kind === "expired"
      ? "The server no longer holds this answer. Ask the question again."
      : sentence(error.message);
  return el(
    "div",
    { class: "card trouble", role: "alert" },
    icon("alert"),
    el("div", {}, el("h4", {}, "The file could not be downloaded"), el("p", {}, words)),
  );
}

function setBusy(busy) {
  document.body.classList.toggle("busy", busy);
  byId("send").setAttribute("aria-label", busy ? "Stop" : "Ask");
}

// Tools

function setTools() {
  const found = Boolean(shown?.answer?.findings.length);
  byId("compare").disabled = !found;
  byId("similarity").disabled = !(found && shown.complete);
  if (!found && byId("compare").ariaPressed === "true") toggle("compare", false);
  if (byId("similarity").ariaPressed === "true") {
    if (found && shown.complete) showHeat(0);
    else toggle("similarity", false);
  }
}

function toggle(id, on) {
  byId(id).setAttribute("aria-pressed", String(on));
  if (id === "compare") viewer.compare(on);
  else if (on) showHeat(0);
  else viewer.heatMap(null);
}

async function showHeat(index) {
  const round = shown;
  try {
    round.maps ??= [];
    round.maps[index] ??= createImageBitmap(await fileOf(round, `similarity-${index + 1}.png`));
    const bitmap = await round.maps[index];
    if (shown === round && byId("similarity").ariaPressed === "true") viewer.heatMap(bitmap);
  } catch (error) {
    byId("similarity").setAttribute("aria-pressed", "false");
    if (error instanceof Trouble) notice(downloadTrouble(error));
  }
}

// Wiring

function listenToFiles() {
  const take = (file) => file && open({ file }, file.name || "pasted image");
  const input = byId("file");
  input.addEventListener("change", () => {
    take(input.files[0]);
    input.value = "";
  });
  byId("choose").addEventListener("click", () => input.click());
  byId("another").addEventListener("click", () => {
    turnTo("welcome");
    byId("choose").focus();
  });
  byId("back").addEventListener("click", () => turnTo("open"));
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take(event.clipboardData.files[0]);
  });
  const veil = byId("veil");
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    veil.hidden = !event.dataTransfer.types.includes("Files");
  });
  document.addEventListener("dragleave", (event) => !event.relatedTarget && (veil.hidden = true));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    veil.hidden = true;
    take(event.dataTransfer.files[0]);
  });
}

function listenToQuestions() {
  const field = byId("question");
  const form = byId("ask-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (stop) return stop.abort();
    const question = field.value.trim();
    if (!question) return field.focus();
    write("");
    return put(question);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!stop) form.requestSubmit();
  });
  field.addEventListener("input", fitField);
}

/** Puts words into the field where questions are written. */
function write(text) {
  byId("question").value = text;
  fitField();
}

function fitField() {
  const field = byId("question");
  field.style.height = "";
  field.style.height = `${field.scrollHeight}px`;
}

function listenToTools() {
  const opacity = byId("opacity");
  const setOpacity = () => viewer.stage.style.setProperty("--opacity", opacity.value / 100);
  opacity.addEventListener("input", setOpacity);
  setOpacity();
  byId("zoom-in").addEventListener("click", () => viewer.zoomBy(1.5));
  byId("zoom-out").addEventListener("click", () => viewer.zoomBy(1 / 1.5));
  byId("zoom-fit").addEventListener("click", () => viewer.fit());
  byId("help").addEventListener("click", () => byId("help-dialog").showModal());
  for (const id of ["similarity", "compare"]) {
    byId(id).addEventListener("click", () => toggle(id, byId(id).ariaPressed !== "true"));
  }
  for (const what of ["slice", "frame"]) {
    byId(what).addEventListener("change", () => choose({ [what]: Number(byId(what).value) }));
    byId(what).addEventListener("input", () => {
      byId(`${what}-number`).textContent = `${Number(byId(what).value) + 1} of ${Number(byId(what).max) + 1}`;
    });
  }
  byId("plane").addEventListener("change", () => choose({ plane: byId("plane").value, slice: null }));
  byId("window").addEventListener("change", () => {
    const custom = byId("window").value === "custom";
    byId("custom-field").hidden = !custom;
    if (custom) byId("custom").focus();
    else choose({ window: byId("window").value });
  });
  byId("custom").addEventListener("change", () => choose({ window: byId("custom").value }));
}

async function listExamples() {
  const examples = await getJson("v1/examples").catch(() => []);
  byId("example-list").replaceChildren(...examples.map(exampleCard));
  byId("examples").hidden = examples.length === 0;
}

function exampleCard({ name, description, question, modality }) {
  const source = { example: name };
  const start = async () => {
    await open(source, name);
    if (view?.source === source) write(question);
  };
  const card = el(
    "button",
    { type: "button", class: "example", onclick: start, title: description },
    el("img", { src: `page/examples/${name}.png`, alt: "", loading: "lazy", width: 96, height: 96 }),
    el(
      "span",
      { class: "example-words" },
      el("span", { class: "example-kind" }, `${modality}, ${name.replace(/-[^-]+$/, "").replaceAll("-", " ")}`),
      el("span", { class: "example-question" }, question),
    ),
  );
  return el("li", {}, card);
}

listenToFiles();
listenToQuestions();
listenToTools();
listExamples();
window.addEventListener("pagehide", () => view && closeSession(view.session));
