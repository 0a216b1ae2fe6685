/** The image with what was found on it: zoom, pan, outlines, similarity map, comparison. */
import { announce, byId, el, svg } from "./dom.js";
import { decodeMask, outline } from "./masks.js";
import { colourOf, extent, labelOf, percent, surface } from "./words.js";

const MOST_ZOOM = 16;
const PAN_STEP = 60;
const HEAT_SIDE = 256;

/**
 * Shows one image in `#stage`. Pictures lie on a plane that is as large as the zoom asks for;
 * marks lie on a second plane above it, which the comparison's divider uncovers from the left.
 * `onfocus(index | null)` is called when a finding is pointed at.
 */
export class Viewer {
  constructor(onfocus) {
    this.onfocus = onfocus;
    this.stage = byId("stage");
    this.canvas = byId("image");
    this.marks = byId("marks");
    this.heat = byId("heat");
    this.tags = byId("tags");
    this.planes = [...this.stage.querySelectorAll(".plane")];
    this.zoom = 1;
    this.centre = [0.5, 0.5]; // the point of the image, 0..1, in the middle of the stage
    this.pointers = new Map();
    this.image = null;
    this.findings = [];
    this.paths = new WeakMap();
    this.listen();
    new ResizeObserver(() => this.place()).observe(this.stage);
  }

  /** Puts another image on the stage: a bitmap and what is known of it. */
  show(bitmap, image) {
    this.image = image;
    this.canvas.width = bitmap.width;
    this.canvas.height = bitmap.height;
    this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
    this.marks.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
    this.letters(image.orientation);
    this.clear();
    this.fit();
  }

  /** Takes all marks away. */
  clear() {
    this.findings = [];
    this.marks.replaceChildren();
    this.tags.replaceChildren();
    this.heatMap(null);
  }

  /** Draws an answer's findings; called again when they gain their labels. */
  draw(answer) {
    this.findings = answer.findings;
    this.marks.replaceChildren(...answer.findings.map((finding, i) => this.mark(finding, i)));
    this.tags.replaceChildren(...answer.findings.map((finding, i) => tag(finding, i, answer.image)));
    this.place();
  }

  mark(finding, index) {
    const d = this.pathOf(finding);
    const [x1, y1, x2, y2] = finding.box;
    const box = { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: "box" };
    const group = svg(
      "g",
      { class: "mark", "data-index": index },
      svg("path", { d, class: "halo" }),
      svg("path", { d, class: "shape" }),
      svg("rect", box),
    );
    group.style.setProperty("--colour", colourOf(index));
    group.addEventListener("pointerenter", () => this.onfocus(index));
    group.addEventListener("pointerleave", () => this.onfocus(null));
    return group;
  }

  pathOf(finding) {
    if (!this.paths.has(finding.mask)) {
      this.paths.set(finding.mask, outline(decodeMask(finding.mask)));
    }
    return this.paths.get(finding.mask);
  }

  /** Brings one finding forward and moves the others back; null brings all back. */
  focus(index) {
    this.stage.classList.toggle("focused", index !== null);
    for (const node of [...this.marks.children, ...this.tags.children]) {
      node.classList.toggle("in-focus", Number(node.dataset.index) === index);
    }
    this.place();
  }

  /** Lays a similarity map, a small grey picture, over the image; null takes it away. */
  heatMap(bitmap) {
    this.heat.hidden = bitmap === null;
    this.stage.classList.toggle("heated", bitmap !== null);
    if (bitmap === null) return;
    // Enlarged while still grey: colours between two cells are then those of values between them.
    const scale = Math.max(1, Math.floor(HEAT_SIDE / Math.max(bitmap.width, bitmap.height)));
    const [width, height] = [bitmap.width * scale, bitmap.height * scale];
    Object.assign(this.heat, { width, height });
    const context = this.heat.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, width, height);
    const pixels = context.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      pixels.data.set(heatColour(pixels.data[i] / 255), i);
    }
    context.putImageData(pixels, 0, 0);
  }

  // Zoom and pan

  fit() {
    this.zoom = 1;
    this.centre = [0.5, 0.5];
    this.place();
  }

  /** Zooms by a factor and keeps the point of the stage at (x, y), in px from its corner, still. */
  zoomBy(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const before = this.frame();
    const zoom = Math.min(Math.max(this.zoom * factor, 1), MOST_ZOOM);
    const grown = zoom / this.zoom;
    this.zoom = zoom;
    this.centre = [
      this.centre[0] + ((x - this.stage.clientWidth / 2) * (1 - 1 / grown)) / before.width,
      this.centre[1] + ((y - this.stage.clientHeight / 2) * (1 - 1 / grown)) / before.height,
    ];
    this.place();
  }

  /** Moves the image by so many px. */
  panBy(x, y) {
    const { width, height } = this.frame();
    this.centre = [this.centre[0] - x / width, this.centre[1] - y / height];
    this.place();
  }

  /** Size and corner of the image on the stage; pixels that are not square in mm become so. */
  frame() {
    const [row, column] = this.image.spacing_mm ?? [1, 1];
    const ratio = (this.image.width * column) / (this.image.height * row);
    const { clientWidth, clientHeight } = this.stage;
    const width = Math.min(clientWidth, clientHeight * ratio) * this.zoom;
    const height = width / ratio;
    const x = clientWidth / 2 - this.centre[0] * width;
    const y = clientHeight / 2 - this.centre[1] * height;
    return { width, height, x, y };
  }

  place() {
    if (!this.image || !this.stage.clientWidth) return;
    const size = this.frame();
    this.centre = [
      held(this.centre[0], this.stage.clientWidth / size.width),
      held(this.centre[1], this.stage.clientHeight / size.height),
    ];
    const { width, height, x, y } = this.frame();
    for (const plane of this.planes) {
      Object.assign(plane.style, {
        width: `${width}px`,
        height: `${height}px`,
        translate: `${x}px ${y}px`,
      });
    }
    this.placeTags({ width, height, x, y });
    this.stage.classList.toggle("zoomed", this.zoom > 1.001);
    byId("zoom").textContent = percent(this.zoom);
  }

  /** Each tag above its box, below where there is no room, and never off the stage. */
  placeTags(frame) {
    const taken = [];
    for (const node of this.tags.children) {
      const [x1, y1, , y2] = this.findings[node.dataset.index].box;
      const toX = (x) => frame.x + (x / this.image.width) * frame.width;
      const toY = (y) => frame.y + (y / this.image.height) * frame.height;
      const { offsetWidth: width, offsetHeight: height } = node;
      const left = clamp(toX(x1), 6, this.stage.clientWidth - width - 6);
      const bottom = this.stage.clientHeight - height - 6;
      const places = [toY(y1) - height - 6, toY(y2) + 6].map((top) => clamp(top, 6, bottom));
      const free = (top) => !taken.some((other) => overlap(other, { left, top, width, height }));
      let top = places.find(free) ?? places[0];
      while (!free(top) && top < bottom) top += height + 3;
      taken.push({ left, top, width, height });
      node.style.translate = `${left}px ${top}px`;
    }
  }

  letters(orientation) {
    const opposite = { L: "R", R: "L", A: "P", P: "A", H: "F", F: "H" };
    const { left = "", top = "" } = orientation ?? {};
    const edges = { left, right: opposite[left] ?? "", top, bottom: opposite[top] ?? "" };
    for (const [edge, letter] of Object.entries(edges)) byId(`edge-${edge}`).textContent = letter;
  }

  // Input

  listen() {
    const { stage } = this;
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    stage.addEventListener("pointerdown", (event) => this.press(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      stage.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    stage.addEventListener("dblclick", (event) => this.doubleClick(event));
    stage.addEventListener("keydown", (event) => this.key(event));
    stage.addEventListener("keyup", (event) => event.key === "b" && this.bare(false));
    stage.addEventListener("blur", () => this.bare(false));
    this.compareInput();
  }

  local({ clientX, clientY }) {
    const { left, top } = this.stage.getBoundingClientRect();
    return [clientX - left, clientY - top];
  }

  wheel(event) {
    if (!this.image) return;
    event.preventDefault();
    this.zoomBy(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...this.local(event));
  }

  press(event) {
    if (event.target.closest(".divider")) return;
    this.pointers.set(event.pointerId, this.local(event));
    if (this.zoom > 1) this.stage.setPointerCapture(event.pointerId);
  }

  /** One pointer pans, two zoom and pan. */
  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.image) return;
    const now = this.local(event);
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.pointers.set(event.pointerId, now);
    if (other) {
      this.zoomBy(distance(now, other) / Math.max(distance(before, other), 1), ...middle(now, other));
      this.panBy((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    } else if (this.zoom > 1) {
      this.panBy(now[0] - before[0], now[1] - before[1]);
    }
  }

  doubleClick(event) {
    if (event.target.closest(".divider")) return;
    if (this.zoom > 1) this.fit();
    else this.zoomBy(2.5, ...this.local(event));
  }

  key(event) {
    if (event.target !== this.stage || event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      "+": () => this.zoomBy(1.25),
      "=": () => this.zoomBy(1.25),
      "-": () => this.zoomBy(0.8),
      0: () => this.fit(),
      ArrowLeft: () => this.panBy(PAN_STEP, 0),
      ArrowRight: () => this.panBy(-PAN_STEP, 0),
      ArrowUp: () => this.panBy(0, PAN_STEP),
      ArrowDown: () => this.panBy(0, -PAN_STEP),
      b: () => this.bare(true),
      c: () => byId("compare").click(),
      s: () => byId("similarity").click(),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  /** The image alone while a key or button is held. */
  bare(on) {
    this.stage.classList.toggle("bare", on);
  }

  /** Left of the divider lies the bare image; it begins in the middle of what was found. */
  compare(on) {
    this.stage.classList.toggle("comparing", on);
    this.divide(on ? this.middleOfFindings() : 0);
    if (on) announce("Left of the divider is the bare image. Arrow keys move the divider.");
  }

  middleOfFindings() {
    const shapes = [...this.marks.querySelectorAll(".shape")].map((shape) => shape.getBBox());
    const left = Math.min(...shapes.map((box) => box.x));
    const right = Math.max(...shapes.map((box) => box.x + box.width));
    const { x, width } = this.frame();
    const middle = x + (((left + right) / 2) * width) / this.image.width;
    return clamp((100 * middle) / this.stage.clientWidth, 10, 90);
  }

  divide(share) {
    const divider = byId("divider");
    this.stage.style.setProperty("--divide", `${share}%`);
    divider.setAttribute("aria-valuenow", Math.round(share));
  }

  compareInput() {
    const divider = byId("divider");
    const share = () => Number(divider.getAttribute("aria-valuenow"));
    divider.addEventListener("pointerdown", (event) => divider.setPointerCapture(event.pointerId));
    divider.addEventListener("pointermove", (event) => {
      if (!divider.hasPointerCapture(event.pointerId)) return;
      this.divide(clamp((100 * this.local(event)[0]) / this.stage.clientWidth, 0, 100));
    });
    divider.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -4, ArrowRight: 4, Home: -100, End: 100 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.divide(clamp(share() + step, 0, 100));
    });
  }
}

/** Name and score of a finding; its size too while it is in focus. */
function tag(finding, index, image) {
  const node = el(
    "div",
    { class: "tag", "data-index": index },
    el("span", { class: "tag-name" }, labelOf(finding, index)),
    finding.score === undefined ? null : el("span", {}, percent(finding.score)),
    el("span", { class: "tag-size" }, `${extent(finding, image)}, ${surface(finding, image)}`),
  );
  node.style.setProperty("--colour", colourOf(index));
  return node;
}

/** Transparent over violet and orange to pale yellow, as in the usual perceptual maps. */
function heatColour(value) {
  const stops = [
    [20, 11, 53, 0],
    [112, 31, 129, 110],
    [206, 64, 96, 170],
    [251, 155, 6, 205],
    [252, 253, 191, 225],
  ];
  const place = clamp(value, 0, 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((from, i) => from + (stops[low + 1][i] - from) * (place - low));
}

const clamp = (value, low, high) => Math.max(low, Math.min(value, high));
const distance = ([x1, y1], [x2, y2]) => Math.hypot(x1 - x2, y1 - y2);
const middle = ([x1, y1], [x2, y2]) => [(x1 + x2) / 2, (y1 + y2) / 2];
const overlap = (a, b) =>
  a.left < b.left + b.width &&
  b.left < a.left + a.width &&
  a.top < b.top + b.height &&
  b.top < a.top + a.height;

/** The centre along one side: in the middle while all is seen, else never past an edge. */
const held = (centre, seen) => (seen >= 1 ? 0.5 : clamp(centre, seen / 2, 1 - seen / 2));
