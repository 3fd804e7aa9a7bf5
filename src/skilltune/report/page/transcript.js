// The transcript of one rollout, in a panel beside the page. It is fetched when it is opened.
import { html, useEffect, useRef, useState } from "./preact.js";
import { amount, bytes, classes, money, percent, plural } from "./format.js";
import { cellsOf, keyOf, stateOf } from "./model.js";

const SHOWN = 6_000; // characters of a text that are shown at first
const FOLDED = new Set(["tool call", "tool", "thinking", "system"]);

/** A long text in parts, so that the browser lays out only those in sight. A part does not end within a pair of
 * surrogates. */
function partsOf(text) {
  const parts = [];
  for (let start = 0; start < text.length; ) {
    let end = Math.min(text.length, start + SHOWN);
    const line = text.lastIndexOf("\n", end);
    if (end < text.length && line > start) end = line + 1;
    else if (/[\ud800-\udbff]/.test(text[end - 1])) end++;
    parts.push(text.slice(start, end));
    start = end;
  }
  return parts;
}

function Text({ text }) {
  const [whole, setWhole] = useState(false);
  if (text.length <= SHOWN) return html`<pre dir="auto">${text}</pre>`;
  const parts = partsOf(text);
  return html`<pre dir="auto">${(whole ? parts : parts.slice(0, 1)).map((part) => html`<span>${part}</span>`)}</pre>
    ${whole ? null : html`<button type="button" class="quiet" onClick=${() => setWhole(true)}>Show ${amount(text.length - parts[0].length)} more characters</button>`}`;
}

function Turn({ turn }) {
  const cut = turn.cut ? html`<p class="soft small">${amount(turn.cut)} characters in the middle are left out.</p>` : null;
  if (!FOLDED.has(turn.role))
    return html`<div class=${classes("turn", turn.role === "assistant" && "said", turn.role === "answer" && "said")}>
      <h3>${turn.role}</h3>
      <${Text} text=${turn.text} />${cut}
    </div>`;
  const first = turn.text.split("\n", 1)[0];
  return html`<details class="turn fold">
    <summary><b>${turn.role === "tool" ? "tool result" : turn.role}</b> <span>${first.slice(0, 120)}</span></summary>
    <${Text} text=${turn.text} />${cut}
  </details>`;
}

function Files({ id, transport, shown }) {
  const images = shown.files.filter((file) => file.image && transport.image(id, file));
  if (!shown.files.length && !shown.stream) return null;
  return html`<div class="turn">
    <h3>Files that it left</h3>
    ${images.map((file) => html`<figure><img src=${transport.image(id, file)} alt=${`Image ${file.path}`} loading="lazy" /><figcaption>${file.path}</figcaption></figure>`)}
    <ul class="plain">
      ${[...shown.files, ...(shown.stream ? [{ ...shown.stream, path: "output of the agent's command line" }] : [])].map((file) => {
        const href = transport.file(id, file);
        return html`<li>
          ${href ? html`<a href=${href} download>${file.path}</a>` : file.path}
          <span class="soft"> ${bytes(file.size)} · <code>skilltune show --file ${file.hash.slice(0, 12)}</code></span>
        </li>`;
      })}
    </ul>
  </div>`;
}

function Facts({ shown }) {
  const state = shown.score === null ? "no score" : shown.score >= 1 ? "right" : shown.score <= 0 ? "wrong" : percent(shown.score, 0);
  const tone = shown.score === null ? "" : shown.score >= 1 ? "good" : "bad";
  const facts = [plural(shown.calls, "call"), `${amount(shown.tokens)} tokens`, money(shown.usd), `${shown.seconds.toFixed(1)} s`];
  return html`<div class="outcome">
    <p><span class=${`badge ${tone}`}>${state}</span>
      ${shown.outcome !== "ok" ? html` <span class="badge">${shown.outcome.replace("_", " ")}</span>` : null}
      <span class="soft"> ${facts.join(" · ")}</span></p>
    ${shown.why ? html`<p>${shown.why}</p>` : null}
    ${shown.error ? html`<p class="bad">${shown.error}</p>` : null}
    ${shown.expected ? html`<p class="soft">Expected: <span class="mono">${shown.expected}</span></p>` : null}
    ${shown.offered && shown.loaded ? null : html`<p class="soft">The skill was ${shown.offered ? "offered and not loaded" : "not offered"}.</p>`}
  </div>`;
}

/** The panel. `at` is {place, column, attempt}; `move` goes to another one, `close` ends it. */
export function Transcript({ page, id, transport, at, move, close }) {
  const column = page.columns[at.column];
  const key = keyOf(column, at.place, at.attempt);
  const [state, setState] = useState({ key: "", shown: null, error: "" });
  const panel = useRef(null);
  useEffect(() => {
    let current = true;
    transport.transcript(id, key).then(
      (shown) => current && setState({ key, shown, error: "" }),
      (error) => current && setState({ key, shown: null, error: error.message }),
    );
    return () => (current = false);
  }, [key]);
  useEffect(() => panel.current.focus({ preventScroll: true }), []);
  const attempts = [...cellsOf(column, at.place)];
  const loading = state.key !== key;
  const { shown, error } = state;
  const onKey = (event) => {
    if (event.key === "Escape") close();
    const step = { j: 1, k: -1 }[event.key];
    const place = at.place + (step || 0);
    if (step && page.samples.ids[place] !== undefined && !event.target.closest("select")) move({ ...at, place, attempt: 0 });
  };
  return html`<aside class="panel" ref=${panel} tabindex="-1" aria-label=${`Transcript of ${page.samples.ids[at.place]}`} onKeyDown=${onKey}>
    <header>
      <h2>${page.samples.ids[at.place]}</h2>
      <button type="button" class="quiet" onClick=${close} aria-label="Close the transcript">✕</button>
    </header>
    <div class="fields">
      <label>Version
        <select value=${at.column} onChange=${(event) => move({ ...at, column: Number(event.target.value), attempt: 0 })}>
          ${page.columns.map((each, i) =>
            cellsOf(each, at.place).replaceAll(".", "") || i === at.column
              ? html`<option value=${i} selected=${i === at.column}>${each.label} · ${stateOf(cellsOf(each, at.place)[0])}</option>`
              : null,
          )}
        </select>
      </label>
      ${attempts.length > 1
        ? html`<label>Attempt
            <select value=${at.attempt} onChange=${(event) => move({ ...at, attempt: Number(event.target.value) })}>
              ${attempts.map((cell, i) => html`<option value=${i} selected=${i === at.attempt}>${i + 1} · ${stateOf(cell)}</option>`)}
            </select>
          </label>`
        : null}
    </div>
    <div class="talk" aria-busy=${String(loading)} aria-live="polite">
      ${loading ? html`<p class="soft">Reading the transcript …</p>` : null}
      ${!loading && error ? html`<p class="bad">${error}</p>` : null}
      ${!loading && !error && !shown ? html`<${Missing} page=${page} cell=${attempts[at.attempt] || "."} transport=${transport} place=${at.place} />` : null}
      ${!loading && shown
        ? html`<${Facts} shown=${shown} />
            ${shown.turns.map((turn, i) => html`<${Turn} key=${i} turn=${turn} />`)}
            ${shown.answer ? html`<${Turn} turn=${shown.answer} />` : null}
            <${Files} id=${id} transport=${transport} shown=${shown} />
            ${shown.diff ? html`<details class="turn fold"><summary><b>changes of the workspace</b></summary><${Text} text=${shown.diff.text} /></details>` : null}
            ${shown.omitted.map((part) => html`<p class="soft small">Left out: ${part.n} × ${part.what}; ${part.where}.</p>`)}`
        : null}
    </div>
  </aside>`;
}

function Missing({ page, cell, transport, place }) {
  if (cell === ".") return html`<p class="soft">This sample was not evaluated with this version.</p>`;
  const note = page.samples.notes[page.samples.ids[place]];
  if (cell === "X") return html`<p>This attempt has no score, so it counts in no mean.${note ? html`<br />${note}` : null}</p>`;
  return transport.live
    ? html`<p class="soft">The journal does not hold this transcript.</p>`
    : html`<p class="soft">This transcript is not in the file: ${transport.about}</p>`;
}

