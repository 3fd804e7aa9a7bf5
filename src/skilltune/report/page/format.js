// Numbers, times and names for a reader. null is unknown, and shown as a dash; it is never 0.

const DASH = "–";
const grouped = new Intl.NumberFormat("en-US");
const known = (value) => value !== null && value !== undefined;

export const count = (n) => (known(n) ? grouped.format(Math.round(n)) : DASH);
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;
export const percent = (score, digits = 1) => (known(score) ? `${(100 * score).toFixed(digits)}\u00a0%` : DASH);

/** A difference of scores in points, with its sign. */
export function points(score, digits = 1) {
  if (!known(score)) return DASH;
  const text = Math.abs(100 * score).toFixed(digits);
  return `${score < 0 && Number(text) ? "−" : "+"}${text}`;
}

export function money(usd) {
  if (!known(usd)) return "price unknown";
  if (usd === 0) return "$0";
  return usd < 0.01 ? `$${usd.toFixed(4)}` : `$${grouped.format(Number(usd.toFixed(2)))}`;
}

/** 1,234 stays; 12,345 becomes 12.3 k. */
export function amount(n) {
  if (!known(n)) return DASH;
  if (Math.abs(n) < 10_000) return count(n);
  return Math.abs(n) < 1e6 ? `${(n / 1e3).toFixed(1)} k` : `${(n / 1e6).toFixed(1)} M`;
}

export function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export const bytes = (n) => (n < 10_000 ? `${count(n)} bytes` : n < 1e6 ? `${(n / 1e3).toFixed(0)} kB` : `${(n / 1e6).toFixed(1)} MB`);
export const time = (t) => new Date(1000 * t).toLocaleTimeString("en-GB");
export const date = (t) =>
  known(t) ? new Date(1000 * t).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" }) : DASH;

/** A model's name without the address of its endpoint, which says little; after the agent that uses it. */
export function modelName(name) {
  const [, agent, model] = /^((?:claude-code|codex|opencode|plugin:[^/]*)\/)?(.*)$/s.exec(name);
  const short = /^(?:openai|anthropic)@/.test(model) ? model.split(/#|\/v1\//).pop().split("/").pop() : model;
  return `${agent || ""}${short || model}` || "unknown";
}

/** The name of a run: its path below the folder of the server. */
export const nameOf = (id) => id.replaceAll("~2", ",").replaceAll("~1", "/").replaceAll("~0", "~");

/** Class names that hold, joined. */
export const classes = (...names) => names.filter(Boolean).join(" ");
