/** A round of the conversation: question, findings, explanation, warnings, files, trouble. */
import { announce, el, icon } from "./dom.js";
import { FORMATS, REFUSALS, TROUBLES, colourOf, extent, labelOf, percent, surface } from "./words.js";

const UNSURE = 0.5; // as likely wrong as right

/**
 * One question and what became of it. `on` has the handlers: select(round), focus(index | null),
 * again(round), save(round, file).
 */
export class Round {
  constructor(question, view, on) {
    Object.assign(this, { question, view, on, answer: null, complete: false, number: null });
    this.state = el("div", { class: "waiting" }, el("span", { class: "dots", "aria-hidden": "true" }));
    this.state.append(" Looking at the image");
    this.title = el("h3", { class: "question" }, question);
    this.body = el("div", { class: "reply" }, this.state);
    this.element = el(
      "article",
      { class: "round", onclick: () => on.select(this) },
      this.title,
      this.body,
    );
  }

  /** Findings or refusal are there; the words are still to come. */
  show(answer) {
    this.answer = answer;
    this.state.remove();
    this.text = el("p", { class: "explanation writing" }, answer.text);
    this.notes = el("div", { class: "warnings" });
    this.findings = el("ul", { class: "findings" });
    this.body.replaceChildren(
      ...(answer.refusal ? [refusal(answer.refusal)] : [this.findings]),
      this.text,
      this.notes,
    );
    this.fill(answer);
    announce(spoken(answer));
  }

  addText(piece) {
    this.text.append(piece);
  }

  /** The whole answer is there. */
  finish(answer, number) {
    if (!this.answer) this.show(answer);
    Object.assign(this, { answer, number, complete: true });
    this.text.textContent = answer.text;
    this.text.classList.remove("writing");
    this.fill(answer);
    this.body.append(this.footer());
    announce(answer.text);
  }

  fill(answer) {
    const items = answer.findings.map((finding, i) => this.finding(finding, i, answer.image));
    this.findings.replaceChildren(...items);
    this.notes.replaceChildren(...answer.warnings.map(warning));
    this.text.hidden = false;
  }

  /** One finding, as a button that brings it forward in the image. */
  finding(finding, index, image) {
    const focus = () => this.on.focus(this, index);
    const leave = () => this.on.focus(this, null);
    const meter = el("span", { class: "meter", "aria-hidden": "true" }, el("span"));
    meter.firstChild.style.width = `${finding.score * 100}%`;
    const button = el(
      "button",
      {
        type: "button",
        class: finding.score < UNSURE ? "finding unsure" : "finding",
        onpointerenter: focus,
        onpointerleave: leave,
        onfocus: focus,
        onblur: leave,
      },
      el("span", { class: "swatch", "aria-hidden": "true" }),
      el("span", { class: "finding-name" }, labelOf(finding, index)),
      el("span", { class: "finding-score" }, percent(finding.score), hidden(" confidence")),
      meter,
      el("span", { class: "finding-size" }, `${extent(finding, image)} \u00b7 ${surface(finding, image)}`),
    );
    button.style.setProperty("--colour", colourOf(index));
    return el("li", {}, button);
  }

  /** Marks the finding that is pointed at in the image. */
  highlight(index) {
    this.findings?.querySelectorAll(".finding").forEach((button, i) => {
      button.classList.toggle("in-focus", i === index);
    });
  }

  /** What went wrong, what there is nonetheless, and the way on. */
  fail(kind, message, retryAfter) {
    this.state.remove();
    this.text?.classList.remove("writing");
    if (this.text && !this.text.textContent) this.text.hidden = true;
    const [title, advice, way] = TROUBLES[kind];
    const seen = this.answer ? " What had arrived is kept, but may not be complete." : "";
    const words = [advice, kind === "refused" ? message : "", seen].join(" ").trim();
    const again = el("button", { type: "button", class: "button small" }, way);
    again.addEventListener("click", () => this.on.again(this));
    if (retryAfter) countDown(again, way, retryAfter);
    const card = el(
      "div",
      { class: `card trouble ${kind}`, role: "alert" },
      icon(kind === "stopped" ? "stop" : "alert"),
      el("div", {}, el("h4", {}, title), words ? el("p", {}, words) : null, again),
    );
    this.body.append(card);
  }

  footer() {
    const files = [["Picture", "overlay.png"]];
    const count = this.answer.findings.length;
    for (let n = 1; n <= count; n++) {
      files.push([count > 1 ? `Mask ${n}` : "Mask", `mask-${n}.png`]);
    }
    files.push(["JSON", "answer.json"]);
    const buttons = files.map(([label, file]) => this.download(label, file));
    const { encode, ...own } = this.answer.seconds; // the image was encoded when it was opened
    const seconds = Object.values(own).reduce((sum, part) => sum + part, 0);
    const made = el("span", { class: "made" }, `${this.answer.model}, ${seconds.toFixed(1)}\u2009s`);
    return el("div", { class: "round-footer" }, ...buttons, count ? this.medical(count) : null, made);
  }

  download(label, file) {
    return el(
      "button",
      { type: "button", class: "link", onclick: () => this.on.save(this, file) },
      icon("download"),
      hidden("Download "),
      label,
    );
  }

  /** What can be had in the terms of the image's file, and why the rest cannot. */
  medical(count) {
    const { formats } = this.view.info;
    const files = { nifti: [], seg: [["DICOM-SEG", "seg.dcm"]], sr: [["DICOM report", "report.zip"]] };
    for (let n = 1; n <= count; n++) {
      files.nifti.push([count > 1 ? `NIfTI ${n}` : "NIfTI", `mask-${n}.nii.gz`]);
    }
    const open = Object.keys(files).filter((name) => formats[name] === null);
    const buttons = open.flatMap((name) => files[name].map((each) => this.download(...each)));
    return el(
      "details",
      { class: "medical" },
      el("summary", { class: "link" }, icon("plus"), "Medical formats"),
      buttons.length ? el("p", {}, ...buttons) : null,
      ...missing(formats),
    );
  }
}

const hidden = (text) => el("span", { class: "visually-hidden" }, text);

const warning = (text) => el("p", { class: "warning" }, icon("alert"), el("span", {}, text));

/** One sentence for each reason, with the formats that it keeps away. */
function missing(formats) {
  const reasons = new Set(Object.values(formats).filter(Boolean));
  return [...reasons].map((reason) => {
    const names = Object.keys(formats).filter((name) => formats[name] === reason);
    const list = names.map((name) => FORMATS[name]).join(", ");
    return el("p", { class: "fine" }, el("b", {}, `${list}: `), `the image ${reason}.`);
  });
}

function refusal(reason) {
  const [title, advice] = REFUSALS[reason];
  return el(
    "div",
    { class: "card refusal" },
    icon("none"),
    el("div", {}, el("h4", {}, title), el("p", {}, advice)),
  );
}

function spoken(answer) {
  if (answer.refusal) return REFUSALS[answer.refusal].join(". ");
  const each = answer.findings.map((f, i) => `${labelOf(f, i)}, ${percent(f.score)} confidence`);
  return `${each.length === 1 ? "One finding" : `${each.length} findings`}: ${each.join("; ")}.`;
}

/** The button waits for as long as the server asked for. */
function countDown(button, label, seconds) {
  button.disabled = true;
  const tick = () => {
    button.textContent = seconds > 0 ? `${label} in ${seconds} s` : label;
    button.disabled = seconds > 0;
    if (seconds-- > 0) setTimeout(tick, 1000);
  };
  tick();
}
