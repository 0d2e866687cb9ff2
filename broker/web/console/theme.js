// @ts-check
/** Dark or light: as the system has it, until somebody chooses. */

const KEY = "broker-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

function apply() {
  const chosen = localStorage.getItem(KEY);
  document.documentElement.dataset.theme = chosen ?? (system.matches ? "dark" : "light");
  dispatchEvent(new Event("theme"));
}

export const theme = {
  toggle() {
    localStorage.setItem(KEY, document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    apply();
  },
};

system.addEventListener("change", apply);
apply();
