// @ts-check
/** The box that publishes a message. */

import { find } from "./dom.js";

/** @typedef {import("../client/broker.js").Broker} Broker */
/** @typedef {import("../client/broker.js").Receipt} Receipt */

/**
 * Open the box for a channel.
 *
 * @param {string} channel
 */
export function openPublishing(channel) {
  const box = find(".publish-box");
  if (channel) find("[name=channel]", box).value = channel;
  find(".outcome", box).textContent = "";
  box.showModal();
  find(channel ? "[name=payload]" : "[name=channel]", box).focus();
}

/**
 * Set the box up.
 *
 * @param {() => Broker | null} bus what it publishes to
 * @param {(receipt: Receipt) => void} done
 */
export function setUpPublishing(bus, done) {
  const box = find(".publish-box");
  const form = find("form", box);
  const outcome = find(".outcome", box);
  find(".publish").addEventListener("click", () => {
    const [, view, ...rest] = location.hash.split("/");
    openPublishing(view === "channels" ? decodeURIComponent(rest.join("/")) : "");
  });
  form.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const current = bus();
    if (current === null) return;
    const fields = Object.fromEntries(new FormData(form));
    outcome.className = "soft small outcome";
    outcome.textContent = "on its way …";
    try {
      const receipt = await current.publish(String(fields.channel), String(fields.payload), options(fields));
      const kept = receipt.duplicate ? "was stored before, at" : "stored at";
      outcome.className = "good small outcome";
      outcome.textContent = `${kept} ${receipt.position}`;
      done(receipt);
    } catch (failure) {
      outcome.className = "bad small outcome";
      outcome.textContent = String(/** @type {Error} */ (failure).message);
    }
  });
}

/** @param {Record<string, any>} fields */
function options(fields) {
  return {
    priority: Number(fields.priority),
    ...(fields.key ? { key: fields.key } : {}),
    ...(fields.id ? { id: fields.id } : {}),
    ...(fields.headers ? { headers: JSON.parse(fields.headers) } : {}),
  };
}
