// @ts-check
/** A plot of some lines over the last minutes, drawn on a canvas; hovering tells what was when. */

import { h } from "./dom.js";
import { clockShort, ticks } from "./format.js";

const MARGIN = { left: 58, right: 10, top: 8, bottom: 20 };

/** @typedef {{ timeUs: number, values: (number | null)[] }} Sample */
/** @typedef {(value: number) => number} Scale */
/** @typedef {(name: string) => string} Colour */

export class Plot {
  /**
   * @param {string} title
   * @param {string[]} names of the lines, three at most
   * @param {(value: number) => string} write how a value is written
   * @param {number} [step] what the scale's units grow by: 1,024 for bytes
   */
  constructor(title, names, write, step = 1000) {
    this.title = title;
    this.names = names;
    this.write = write;
    this.step = step;
    /** @type {Sample[]} */
    this.samples = [];
    this.spanUs = 300_000_000;
    /** @type {number | null} */
    this.pointer = null;
    this.canvas = h("canvas", { role: "img", "aria-label": title });
    this.legend = h("div.legend");
    this.element = h("section.card.plot", {}, h("header", {}, h("h2", {}, title), this.legend), this.canvas);
    this.canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
      this.pointer = event.offsetX;
      this.draw();
    });
    this.canvas.addEventListener("pointerleave", () => {
      this.pointer = null;
      this.draw();
    });
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  /** @param {Sample[]} samples ascending in time; kept by whoever calls, and read at each drawing */
  show(samples) {
    this.samples = samples;
    this.draw();
  }

  draw() {
    const { width, height } = this.canvas.getBoundingClientRect();
    if (width < 10 || height < 10) return;
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const colour = (/** @type {string} */ name) => style.getPropertyValue(`--${name}`).trim();
    const endUs = this.samples.at(-1)?.timeUs ?? 0;
    const seen = this.samples.filter((sample) => sample.timeUs >= endUs - this.spanUs);
    const values = seen.flatMap((sample) => sample.values.map((value) => value ?? 0));
    const marks = ticks(Math.max(0, ...values), this.step);
    const highest = marks[marks.length - 1];
    const x = (/** @type {number} */ timeUs) =>
      width - MARGIN.right - ((endUs - timeUs) / this.spanUs) * (width - MARGIN.left - MARGIN.right);
    const y = (/** @type {number} */ value) =>
      height - MARGIN.bottom - (value / highest) * (height - MARGIN.top - MARGIN.bottom);
    this.#scale(pen, marks, width, y, colour);
    this.#times(pen, endUs, height, x, colour);
    this.names.forEach((_, line) => this.#line(pen, seen, line, x, y, colour(`series-${line + 1}`)));
    this.#point(pen, seen, height, x, colour);
  }

  /** @param {any} pen @param {number[]} marks @param {number} width @param {Scale} y @param {Colour} colour */
  #scale(pen, marks, width, y, colour) {
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.fillStyle = colour("soft");
    pen.strokeStyle = colour("line");
    pen.lineWidth = 1;
    for (const mark of marks) {
      const at = Math.round(y(mark)) + 0.5;
      pen.beginPath();
      pen.moveTo(MARGIN.left, at);
      pen.lineTo(width - MARGIN.right, at);
      pen.stroke();
      pen.fillText(this.write(mark), MARGIN.left - 6, at);
    }
  }

  /** @param {any} pen @param {number} endUs @param {number} height @param {Scale} x @param {Colour} colour */
  #times(pen, endUs, height, x, colour) {
    if (endUs === 0) return;
    pen.textAlign = "center";
    pen.fillStyle = colour("soft");
    const minute = 60_000_000;
    for (let at = Math.ceil((endUs - this.spanUs) / minute) * minute; at <= endUs; at += minute) {
      const place = x(at);
      const fits = place > MARGIN.left + 20 && place < x(endUs) - 18;
      if (fits) pen.fillText(clockShort(at).slice(0, 5), place, height - 8);
    }
  }

  /** @param {any} pen @param {Sample[]} seen @param {number} line @param {Scale} x @param {Scale} y @param {string} colour */
  #line(pen, seen, line, x, y, colour) {
    pen.strokeStyle = colour;
    pen.lineWidth = 1.6;
    pen.lineJoin = "round";
    pen.beginPath();
    let down = false;
    for (const sample of seen) {
      const value = sample.values[line];
      if (value === null || value === undefined) {
        down = false; // A stretch without figures, as while the page was cut off, stays a gap.
        continue;
      }
      if (down) pen.lineTo(x(sample.timeUs), y(value));
      else pen.moveTo(x(sample.timeUs), y(value));
      down = true;
    }
    pen.stroke();
  }

  /** @param {any} pen @param {Sample[]} seen @param {number} height @param {Scale} x @param {Colour} colour */
  #point(pen, seen, height, x, colour) {
    let chosen = seen.at(-1);
    if (this.pointer !== null) {
      const pointer = this.pointer;
      for (const sample of seen) {
        if (!chosen || Math.abs(x(sample.timeUs) - pointer) < Math.abs(x(chosen.timeUs) - pointer)) chosen = sample;
      }
    }
    if (chosen && this.pointer !== null) {
      const at = Math.round(x(chosen.timeUs)) + 0.5;
      pen.strokeStyle = colour("soft");
      pen.setLineDash([3, 3]);
      pen.beginPath();
      pen.moveTo(at, MARGIN.top);
      pen.lineTo(at, height - MARGIN.bottom);
      pen.stroke();
      pen.setLineDash([]);
    }
    const values = chosen?.values ?? [];
    const told = this.names.map((name, line) => {
      const value = values[line] ?? null;
      return `${name} ${value === null ? "–" : this.write(value)}`;
    });
    const when = chosen && this.pointer !== null ? [h("i", {}, clockShort(chosen.timeUs))] : [];
    this.legend.replaceChildren(...told.map((text, line) => h(`span.series-${line + 1}`, {}, text)), ...when);
    this.canvas.setAttribute("aria-label", `${this.title}: ${told.join(", ")}`);
  }
}
