"use strict";
// The page is whole without this file, but for the comparison of any two versions. Text is put in as text only.

const data = JSON.parse(document.getElementById("data").textContent);
const CONTEXT = 3; // unchanged lines shown around a change
const MOST_PAIRS = 4e6; // of lines or words compared; beyond, a block is replaced as a whole

/** [kind, text] in order; kind is "=", "-" or "+". Longest common subsequence of two lists of strings. */
function align(before, after) {
  let head = 0;
  while (head < before.length && head < after.length && before[head] === after[head]) head++;
  let tail = 0;
  while (tail < before.length - head && tail < after.length - head
    && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail++;
  const a = before.slice(head, before.length - tail), b = after.slice(head, after.length - tail);
  const middle = a.length * b.length > MOST_PAIRS
    ? [["-", a], ["+", b]].map(([kind, part]) => [kind, part.join("")])
    : walk(a, b);
  return [
    ["=", before.slice(0, head).join("")], ...middle, ["=", before.slice(before.length - tail).join("")],
  ].filter(([, text]) => text);
}

function walk(a, b) {
  const width = b.length + 1, longest = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      longest[i * width + j] = a[i] === b[j]
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
  const found = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { found.push(["=", a[i]]); i++; j++; }
    else if (j === b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) found.push(["-", a[i++]]);
    else found.push(["+", b[j++]]);
  }
  return found;
}

/** Between two pieces of kept text, all that went first, then all that came. */
function grouped(found) {
  const result = [];
  let minus = "", plus = "";
  const flush = () => {
    if (minus) result.push(["-", minus]);
    if (plus) result.push(["+", plus]);
    minus = plus = "";
  };
  found.forEach(([kind, text], i) => {
    if (kind === "-") minus += text;
    else if (kind === "+") plus += text;
    else if (text === " " && minus && plus && i < found.length - 1) { minus += text; plus += text; }
    else {
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

/** Lines first, then words inside of lines that differ. */
function changes(before, after) {
  const found = [], byLine = grouped(align(lines(before), lines(after)));
  for (let i = 0; i < byLine.length; i++) {
    const [kind, text] = byLine[i];
    if (kind === "-" && byLine[i + 1] && byLine[i + 1][0] === "+") found.push(...grouped(align(words(text), words(byLine[++i][1]))));
    else found.push([kind, text]);
  }
  return found;
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function render(found) {
  if (found.every(([kind]) => kind === "=")) return element("p", "No difference.");
  const block = element("pre", "", "diff");
  block.tabIndex = 0;
  block.dir = "auto";
  found.forEach(([kind, text], i) => {
    if (kind !== "=") return block.append(element(kind === "-" ? "del" : "ins", text));
    const all = lines(text), head = i ? CONTEXT : 0, tail = i < found.length - 1 ? CONTEXT + 1 : 0;
    const folded = all.length - head - tail;
    if (folded <= 1) return block.append(text);
    block.append(all.slice(0, head).join(""), element("span", `⋯ ${folded} unchanged lines ⋯`, "fold"), "\n");
    if (tail) block.append(all.slice(-tail).join(""));
  });
  return block;
}

const form = document.getElementById("compare");
if (form) {
  const [from, to] = form.querySelectorAll("select"), shown = document.getElementById("compared");
  const compare = () => {
    const before = data.versions[from.value], after = data.versions[to.value];
    shown.replaceChildren(
      before === undefined || after === undefined
        ? element("p", "The text of that version is not in this file; `skilltune diff` has it.")
        : render(changes(before, after)),
    );
  };
  const follow = () => {
    const asked = /^#diff=(\d+),(\d+)$/.exec(location.hash);
    if (!asked) return;
    [from.value, to.value] = [asked[1], asked[2]];
    compare();
    form.scrollIntoView();
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => {
    history.replaceState(null, "", `#diff=${from.value},${to.value}`);
    compare();
  });
  form.hidden = false;
  addEventListener("hashchange", follow);
  follow();
}

// A transcript that is linked to opens; arrow keys go from cell to cell of a grid, as in a table.
function open() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (target && target.classList.contains("talk")) {
    target.scrollIntoView({ block: "center" });
    target.focus({ preventScroll: true });
  }
}
addEventListener("hashchange", open);
open();

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
for (const grid of document.querySelectorAll("table.grid")) {
  grid.addEventListener("keydown", (event) => {
    const step = STEPS[event.key], cell = event.target.closest("td");
    if (!step || !cell || event.altKey || event.ctrlKey || event.metaKey) return;
    let row = cell.parentElement.rowIndex + step[0], column = cell.cellIndex + step[1];
    for (; grid.rows[row] && grid.rows[row].cells[column]; row += step[0], column += step[1]) {
      const link = grid.rows[row].cells[column].querySelector("a");
      if (!link) continue;
      event.preventDefault();
      link.focus();
      return;
    }
  });
}

// On paper there is nothing to click: changes and reasons are unfolded, transcripts stay folded.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details.paper")) folded.open = true;
});
document.documentElement.dataset.ready = "true";
