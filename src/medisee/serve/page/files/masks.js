/** Masks: COCO's compressed run lengths to pixels, and pixels to smooth outlines. */

const MOST_PIXELS = 4_000_000; // above this, every n-th row and column is enough to draw

/** {size: [H, W], counts} -> {width, height, step, pixels}: row-major 0/1 on every step-th pixel. */
export function decodeMask({ size: [rows, columns], counts }) {
  const step = Math.max(1, Math.ceil(Math.sqrt((rows * columns) / MOST_PIXELS)));
  const width = Math.ceil(columns / step);
  const height = Math.ceil(rows / step);
  const pixels = new Uint8Array(width * height);
  let position = 0;
  runLengths(counts).forEach((length, index) => {
    if (index % 2) fillRun(position, position + length);
    position += length;
  });
  return { width, height, step, pixels };

  /** Marks the sampled pixels of a run; runs go down the columns, one after the other. */
  function fillRun(start, end) {
    for (let column = Math.floor(start / rows); column * rows < end; column++) {
      if (column % step) continue;
      const first = Math.max(start - column * rows, 0);
      const last = Math.min(end - column * rows, rows);
      for (let row = Math.ceil(first / step) * step; row < last; row += step) {
        pixels[(row / step) * width + column / step] = 1;
      }
    }
  }
}

/** COCO's string: six bits a character, five of number and one of "more", then differences. */
function runLengths(counts) {
  const lengths = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    let bits;
    do {
      bits = counts.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32);
    if (bits & 16) value |= -1 << shift;
    if (lengths.length > 2) value += lengths[lengths.length - 2];
    lengths.push(value);
  }
  return lengths;
}

/** SVG path data, in pixels of the original image, around a decoded mask; "" where it is empty. */
export function outline(mask) {
  const area = crop(mask);
  return area ? trace(smooth(area), area, mask.step) : "";
}

/** The mask's part of the grid with two empty pixels around it, as a field of 0 and 1. */
function crop({ width, height, pixels }) {
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!pixels[y * width + x]) continue;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      bottom = y;
    }
  }
  if (right < 0) return null;
  const area = { x: left - 2, y: top - 2, width: right - left + 5, height: bottom - top + 5 };
  area.field = new Float32Array(area.width * area.height);
  for (let y = top; y <= bottom; y++) {
    const row = pixels.subarray(y * width + left, y * width + right + 1);
    area.field.set(row, (y - area.y) * area.width + 2);
  }
  return area;
}

/** Rounds off the pixels' corners, unless that would eat a thin or tiny target. */
function smooth({ field, width, height }) {
  const soft = blur(blur(field, width, height, 1), width, height, width);
  let moved = 0;
  let whole = 0;
  for (let i = 0; i < field.length; i++) {
    whole += field[i];
    moved += field[i] !== (soft[i] > 0.5 ? 1 : 0);
  }
  return moved < 0.1 * whole ? soft : field;
}

/** Binomial filter of five along x (stride 1) or y (stride width); the margin stays empty. */
function blur(field, width, height, stride) {
  const out = new Float32Array(field.length);
  for (let i = 2 * stride; i < field.length - 2 * stride; i++) {
    const near = field[i - stride] + field[i + stride];
    out[i] = (field[i - 2 * stride] + 4 * near + 6 * field[i] + field[i + 2 * stride]) / 16;
  }
  for (let y = 0; y < height; y++) out[y * width] = out[y * width + width - 1] = 0;
  out.fill(0, 0, width).fill(0, width * (height - 1));
  return out;
}

// Marching squares. A cell's corners are top left 8, top right 4, bottom right 2, bottom left 1;
// its edges T, R, B, L. Each pair goes from edge to edge with the inside on the right.
const TURNS = [
  [], ["LB"], ["BR"], ["LR"], ["RT"], ["RT", "LB"], ["BT"], ["LT"],
  ["TL"], ["TB"], ["TL", "BR"], ["TR"], ["RL"], ["RB"], ["BL"], [],
]; // prettier-ignore

/** Follows the level 0.5 of the field; closed loops, as the margin is empty. */
function trace(field, { x: left, y: top, width, height }, step) {
  const next = new Map();
  for (let y = 0; y < height - 1; y++) {
    for (let x = 0; x < width - 1; x++) {
      const i = y * width + x;
      const inside = (at) => (field[at] > 0.5 ? 1 : 0);
      const corners = inside(i) * 8 + inside(i + 1) * 4 + inside(i + width + 1) * 2 + inside(i + width);
      const edge = { T: 2 * i, L: 2 * i + 1, B: 2 * (i + width), R: 2 * (i + 1) + 1 };
      for (const [from, to] of TURNS[corners]) next.set(edge[from], edge[to]);
    }
  }
  let path = "";
  for (const start of next.keys()) {
    if (!next.has(start)) continue;
    const points = [];
    for (let at = start; next.has(at); ) {
      points.push(crossing(at));
      const following = next.get(at);
      next.delete(at);
      at = following;
    }
    path += `M${points.join("L")}Z`;
  }
  return path;

  /** Where the level crosses an edge between two pixels' centres. */
  function crossing(id) {
    const i = id >> 1;
    const down = id & 1;
    const [a, b] = [field[i], field[down ? i + width : i + 1]];
    const part = (0.5 - a) / (b - a);
    const x = left + (i % width) + 0.5 + (down ? 0 : part);
    const y = top + Math.floor(i / width) + 0.5 + (down ? part : 0);
    return `${(x * step).toFixed(2)} ${(y * step).toFixed(2)}`;
  }
}
