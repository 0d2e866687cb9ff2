// @ts-check
/** Figures as people read them. Nothing here knows the page, so that tests need none. */

const UNITS = ["", "K", "M", "G", "T"];

/**
 * Write a figure with three digits that count: 12.3K.
 *
 * @param {number} value
 * @param {number} [step] 1,000, or 1,024 for bytes
 */
export function short(value, step = 1000) {
  let unit = 0;
  let rest = Math.abs(value);
  while (rest >= step * 0.9995 && unit < UNITS.length - 1) {
    rest /= step;
    unit += 1;
  }
  const digits = unit === 0 && Number.isInteger(rest) ? 0 : rest < 9.995 ? 2 : rest < 99.95 ? 1 : 0;
  return `${value < 0 ? "−" : ""}${rest.toFixed(digits)}${UNITS[unit]}`;
}

/** @param {number} value bytes */
export function bytes(value) {
  const text = short(value, 1024);
  return /[KMGT]$/.test(text) ? `${text.slice(0, -1)} ${text.slice(-1)}iB` : `${text} B`;
}

/** @param {number} value microseconds */
export function duration(value) {
  if (value < 1_000) return `${value.toFixed(0)} µs`;
  if (value < 1_000_000) return `${(value / 1_000).toFixed(value < 10_000 ? 2 : value < 100_000 ? 1 : 0)} ms`;
  if (value < 60_000_000) return `${(value / 1_000_000).toFixed(1)} s`;
  const minutes = Math.floor(value / 60_000_000);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/**
 * Write an integer with its thousands apart.
 *
 * @param {number | string | bigint} value
 */
export function whole(value) {
  return String(value).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
}

/** @param {number} timeUs microseconds since 1970 */
export function clock(timeUs) {
  const date = new Date(timeUs / 1_000);
  const two = (/** @type {number} */ n) => String(n).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return `${day} ${time}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

/** @param {number} timeUs microseconds since 1970 */
export function clockShort(timeUs) {
  return clock(timeUs).slice(11, 19);
}

/**
 * Choose where the lines of a scale stand: 0 and some round figures up to what is shown.
 *
 * @param {number} highest
 * @param {number} [step] 1,000, or 1,024 for bytes
 * @returns {number[]} ascending; the last is at or above the highest
 */
export function ticks(highest, step = 1000) {
  if (!(highest > 0)) return [0, 1];
  let unit = 1;
  while (highest / unit >= step) unit *= step;
  const rough = highest / unit / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const round = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) ?? 10;
  const gap = round * power * unit;
  const marks = [0];
  while (marks[marks.length - 1] < highest) marks.push(marks.length * gap);
  return marks;
}

/** How many bytes of a payload are shown before the rest is only counted. */
const SHOWN_BYTES = 4096;

/**
 * Show a payload: JSON in lines, text as it is, anything else as hex.
 *
 * @param {Uint8Array} payload
 */
export function readable(payload) {
  const cut = payload.length > SHOWN_BYTES;
  const more = cut ? `\n… ${bytes(payload.length)} in all` : "";
  const shown = cut ? payload.subarray(0, SHOWN_BYTES) : payload;
  try {
    // What is cut may end within a character: stream decoding leaves that out instead of refusing it.
    const text = new TextDecoder("utf-8", { fatal: true }).decode(shown, { stream: cut });
    if (!/[\x00-\x08\x0e-\x1f]/.test(text)) return (cut ? text : indented(text)) + more;
  } catch {
    // No text: it is shown as hex.
  }
  return hex(shown.subarray(0, 512)) + (payload.length > 512 && !cut ? `\n… ${bytes(payload.length)} in all` : more);
}

/** @param {string} text */
function indented(text) {
  if (!/^\s*[[{]/.test(text)) return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** @param {Uint8Array} data */
function hex(data) {
  const lines = [];
  for (let at = 0; at < data.length; at += 16) {
    const part = [...data.subarray(at, at + 16)];
    const letters = part.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    const pairs = part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    lines.push(`${at.toString(16).padStart(4, "0")}  ${pairs.padEnd(47)}  ${letters}`);
  }
  return lines.join("\n");
}
