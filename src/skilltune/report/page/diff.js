// The difference of two texts: lines first, then words inside of lines that differ.
import { html } from "./preact.js";

const CONTEXT = 3; // unchanged lines shown around a change
const MOST_PAIRS = 4e6; // of lines or words compared; beyond, a block is replaced as a whole

/** [kind, text] in order; kind is "=", "-" or "+". Longest common subsequence of two lists of strings. */
function align(before, after) {
  let head = 0;
  while (head < before.length && head < after.length && before[head] === after[head]) head++;
  let tail = 0;
  while (
    tail < before.length - head &&
    tail < after.length - head &&
    before[before.length - 1 - tail] === after[after.length - 1 - tail]
  )
    tail++;
  const a = before.slice(head, before.length - tail);
  const b = after.slice(head, after.length - tail);
  const whole = [["-", a.join("")], ["+", b.join("")]];
  const middle = a.length * b.length > MOST_PAIRS ? whole : walk(a, b);
  return [
    ["=", before.slice(0, head).join("")],
    ...middle,
    ["=", before.slice(before.length - tail).join("")],
  ].filter(([, text]) => text);
}

function walk(a, b) {
  const width = b.length + 1;
  const longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      longest[i * width + j] =
        a[i] === b[j]
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  const found = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      found.push(["=", a[i++]]);
      j++;
    } else if (j === b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1]))
      found.push(["-", a[i++]]);
    else found.push(["+", b[j++]]);
  }
  return found;
}

/** Between two pieces of kept text, all that went first, then all that came. */
function collected(found) {
  const result = [];
  let minus = "";
  let plus = "";
  const flush = () => {
    if (minus) result.push(["-", minus]);
    if (plus) result.push(["+", plus]);
    minus = plus = "";
  };
  found.forEach(([kind, text], i) => {
    if (kind === "-") minus += text;
    else if (kind === "+") plus += text;
    else if (text === " " && minus && plus && i < found.length - 1) {
      minus += text;
      plus += text;
    } else {
      flush();
      if (result.length && result[result.length - 1][0] === "=") result[result.length - 1][1] += text;
      else result.push(["=", text]);
    }
  });
  flush();
  return result;
}

const lines = (text) => text.match(/[^\n]*\n|[^\n]+$/g) || [];
const words = (text) => text.match(/\s|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];

export function changes(before, after) {
  const found = [];
  const byLine = collected(align(lines(before), lines(after)));
  for (let i = 0; i < byLine.length; i++) {
    const [kind, text] = byLine[i];
    if (kind === "-" && byLine[i + 1] && byLine[i + 1][0] === "+")
      found.push(...collected(align(words(text), words(byLine[++i][1]))));
    else found.push([kind, text]);
  }
  return found;
}

/** The changes as a block of text; long unchanged stretches are folded. */
export function Diff({ before, after, label }) {
  const found = changes(before, after);
  if (found.every(([kind]) => kind === "=")) return html`<p class="soft">The two texts are equal.</p>`;
  const parts = found.flatMap(([kind, text], i) => {
    if (kind === "-") return [html`<del>${text}</del>`];
    if (kind === "+") return [html`<ins>${text}</ins>`];
    const all = lines(text);
    const head = i ? CONTEXT : 0;
    const tail = i < found.length - 1 ? CONTEXT + 1 : 0;
    const folded = all.length - head - tail;
    if (folded <= 1) return [text];
    const fold = html`<span class="fold">⋯ ${folded} unchanged lines ⋯</span>`;
    return [all.slice(0, head).join(""), fold, "\n", tail ? all.slice(-tail).join("") : ""];
  });
  return html`<pre class="diff" dir="auto" tabindex="0" role="region" aria-label=${label || "Difference"}>${parts}</pre>`;
}
