// @ts-check
/** Whose page this is: the token of this tab, and what is asked of the broker in their name. */

const TOKEN = "broker-token";

export const session = {
  get token() {
    return sessionStorage.getItem(TOKEN) ?? "";
  },

  /** @param {string} token empty for nobody */
  set token(token) {
    if (token) sessionStorage.setItem(TOKEN, token);
    else sessionStorage.removeItem(TOKEN);
  },
};

/**
 * Ask for the broker as it is at this moment.
 *
 * @param {number} [seconds] rows of the newest seconds that are wanted
 * @returns {Promise<any>}
 */
export async function snapshot(seconds = 0) {
  /** @type {Record<string, string>} */
  const headers = session.token ? { authorization: `Bearer ${session.token}` } : {};
  const answer = await fetch(`/v1/stats?seconds=${seconds}`, { headers, signal: AbortSignal.timeout(10_000) });
  if (answer.ok) return await answer.json();
  const text = await answer.text();
  let told;
  try {
    told = JSON.parse(text).detail;
  } catch {
    // A refusal that is no JSON says why in its text.
  }
  throw new Error(String(told ?? (text.trim() || answer.status)));
}

/**
 * Do something now, and again and again until told to stop; never twice at the same time.
 *
 * @param {number} everyMs
 * @param {() => Promise<void>} work
 * @returns {() => void} stops it
 */
export function repeat(everyMs, work) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  let over = false;
  const round = async () => {
    await work();
    if (!over) timer = setTimeout(round, everyMs);
  };
  void round();
  return () => {
    over = true;
    clearTimeout(timer);
  };
}
