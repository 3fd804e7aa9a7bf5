// The sample × version matrix. Only the rows in sight are in the document, so 10,000 samples scroll like 50.
import { html, useState, useLayoutEffect, useEffect, useMemo, useRef, Component } from "./preact.js";
import { classes, count, plural, points } from "./format.js";
import { ABOUT_SPLIT, FILTERS, SPLITS, cellsOf, describeCell, kindsOf, meanOf, splitsOf, stateOf } from "./model.js";

const ROW = 30; // pixels; the same as in page.css
const SPARE = 10; // rows above and below the window

const MARK = { right: "r", wrong: "w", limit: "l", infrastructure: "x", "not evaluated": "u" };

/** One cell: a mark for each attempt, side by side. */
function Marks({ cells }) {
  return [...cells].map((cell) => html`<i class=${stateOf(cell) === "partial" ? `p p${cell}` : MARK[stateOf(cell)]}></i>`);
}

class Row extends Component {
  shouldComponentUpdate(next) {
    const now = this.props;
    return ["place", "columns", "active", "before", "after", "index"].some((name) => now[name] !== next[name]);
  }

  render({ place, columns, active, samples, before, after, index }) {
    const input = samples.inputs ? samples.inputs[place] : "";
    const old = meanOf(columns[before], place);
    const now = meanOf(columns[after], place);
    const moved = old === null || now === null ? null : now - old;
    return html`<div class="row" role="row" aria-rowindex=${index + 2} style=${{ top: `${index * ROW}px` }}>
      <div class="name" role="rowheader" title=${`${samples.ids[place]}${input ? `: ${input}` : ""}`}>
        <b>${samples.ids[place]}</b>${input ? html` <span>${input}</span>` : null}
      </div>
      ${columns.map((column, i) => {
        const cells = cellsOf(column, place);
        return html`<div
          class=${classes("cell", active === i && "active", column.kind)}
          role="gridcell"
          id=${`c-${place}-${i}`}
          data-place=${place}
          data-column=${i}
          aria-label=${[...cells].map(describeCell).join(", ")}
        >
          <${Marks} cells=${cells} />
        </div>`;
      })}
      <div class=${classes("moved", moved > 0 && "up", moved < 0 && "down")} role="gridcell">
        ${moved ? (Math.abs(moved) === 1 ? (moved > 0 ? "fixed" : "broke") : points(moved, 0)) : ""}
      </div>
    </div>`;
  }
}

function Legend() {
  const states = [["r", "right"], ["p p5", "partial credit"], ["w", "wrong"], ["l", "limit"], ["x", "no score: infrastructure"], ["u", "not evaluated"]];
  return html`<ul class="legend" aria-label="States of a cell">
    ${states.map(([mark, name]) => html`<li><span class="cell"><i class=${mark}></i></span>${name}</li>`)}
  </ul>`;
}

/**
 * The matrix with its filters. `view` holds what is chosen: {before, after, show, split, query}; `choose` changes it.
 * `open(place, column)` shows the transcript of a cell.
 */
export function Matrix({ page, view, choose, open }) {
  const { samples, columns } = page;
  const split = useMemo(() => splitsOf(samples), [samples]);
  const before = columns[view.before];
  const after = columns[view.after];
  const kinds = useMemo(() => split.map((_, place) => kindsOf(before, after, place)), [split, before, after]);
  const query = view.query.trim().toLowerCase();
  const found = useMemo(
    () =>
      split.flatMap((name, place) => {
        if (view.split && view.split !== name) return [];
        const text = `${samples.ids[place]} ${samples.inputs ? samples.inputs[place] : ""}`.toLowerCase();
        return !query || text.includes(query) ? [place] : [];
      }),
    [split, samples, view.split, query],
  );
  const totals = useMemo(() => {
    const sums = {};
    for (const place of found) for (const kind of kinds[place]) sums[kind] = (sums[kind] || 0) + 1;
    return sums;
  }, [found, kinds]);
  const items = useMemo(() => {
    const shown = found.filter((place) => kinds[place].includes(view.show));
    const sizes = {};
    for (const place of shown) sizes[split[place]] = (sizes[split[place]] || 0) + 1;
    const rows = [];
    for (const place of shown) {
      if (!rows.length || split[rows[rows.length - 1]] !== split[place]) rows.push({ name: split[place], n: sizes[split[place]] });
      rows.push(place);
    }
    return rows;
  }, [found, kinds, view.show, split]);
  const here = SPLITS.filter((name) => samples.sizes[name]);
  return html`
    <div class="tools">
      <div class="chips" role="group" aria-label="Samples to show">
        ${FILTERS.filter(([name]) => totals[name] || name === "all" || name === view.show).map(
          ([name, label]) =>
            html`<button type="button" aria-pressed=${String(view.show === name)} onClick=${() => choose({ show: name })}>
              ${label} <span>${count(totals[name] || 0)}</span>
            </button>`,
        )}
      </div>
      <div class="fields">
        <label>Split
          <select value=${view.split} onChange=${(event) => choose({ split: event.target.value })}>
            <option value="">all</option>
            ${here.map((name) => html`<option value=${name}>${name}</option>`)}
          </select>
        </label>
        <label class="grow">Search
          <input type="search" id="search" value=${view.query} placeholder="sample or words of its input ( / )"
            onInput=${(event) => choose({ query: event.target.value })} />
        </label>
      </div>
    </div>
    <${Grid} items=${items} samples=${samples} columns=${columns} before=${view.before} after=${view.after} open=${open} />
    <p class="soft small" aria-live="polite">${plural(items.filter((item) => typeof item === "number").length, "sample")} shown${
      samples.ids.length < SPLITS.reduce((sum, name) => sum + samples.all[name], 0) ? "; not all samples of the run fit on this page" : ""
    }.</p>
    <${Legend} />`;
}

function Grid({ items, samples, columns, before, after, open }) {
  const box = useRef(null);
  const [range, setRange] = useState([0, 40]);
  const [active, setActive] = useState(null); // [index in items, column]
  const measure = () => {
    const { scrollTop, clientHeight } = box.current;
    const first = Math.max(0, Math.floor(scrollTop / ROW) - SPARE);
    const from = first - (first % 5);
    const to = Math.ceil((scrollTop + clientHeight) / ROW) + SPARE;
    setRange((old) => (old[0] === from && Math.abs(old[1] - to) < 5 ? old : [from, to]));
  };
  useLayoutEffect(measure, [items]);
  useEffect(() => {
    addEventListener("resize", measure);
    return () => removeEventListener("resize", measure);
  }, []);
  const go = (index, column) => {
    setActive([index, column]);
    const { scrollTop, clientHeight } = box.current;
    const top = index * ROW;
    const head = 44;
    if (top < scrollTop) box.current.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight - head) box.current.scrollTop = top + ROW - clientHeight + head;
    measure();
  };
  const seek = (from, step) => {
    for (let i = from; i >= 0 && i < items.length; i += step) if (typeof items[i] === "number") return i;
    return null;
  };
  const onKey = (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const [row, column] = active || [seek(0, 1), 0];
    if (row === null || row === undefined) return;
    const far = Math.max(1, Math.floor(box.current.clientHeight / ROW) - 2);
    const moves = {
      ArrowDown: () => [seek(row + (active ? 1 : 0), 1), column],
      ArrowUp: () => [seek(row - 1, -1), column],
      ArrowRight: () => [row, Math.min(columns.length - 1, column + 1)],
      ArrowLeft: () => [row, Math.max(0, column - 1)],
      PageDown: () => [seek(Math.min(items.length - 1, row + far), -1), column],
      PageUp: () => [seek(Math.max(0, row - far), 1), column],
      Home: () => [seek(0, 1), column],
      End: () => [seek(items.length - 1, -1), column],
    };
    if (event.key === "Enter" || event.key === " ") open(items[row], column);
    else if (moves[event.key]) {
      const [to, at] = moves[event.key]();
      if (to !== null) go(to, at);
    } else return;
    event.preventDefault();
  };
  const onClick = (event) => {
    const cell = event.target.closest("[data-place]");
    if (!cell) return;
    const place = Number(cell.dataset.place);
    setActive([items.indexOf(place), Number(cell.dataset.column)]);
    open(place, Number(cell.dataset.column));
  };
  const shown = items.slice(range[0], range[1]).map((item, i) => [item, range[0] + i]);
  const at = active && typeof items[active[0]] === "number" ? `c-${items[active[0]]}-${active[1]}` : undefined;
  return html`<div
    class="grid"
    ref=${box}
    tabindex="0"
    role="grid"
    aria-label="Samples by version; arrow keys move, Enter shows the transcript"
    aria-rowcount=${items.length + 1}
    aria-colcount=${columns.length + 2}
    aria-activedescendant=${at}
    onScroll=${measure}
    onKeyDown=${onKey}
    onClick=${onClick}
    style=${{ "--columns": columns.length, "--cell": `${columns.some((c) => c.cells.length > 2) ? 58 : 46}px` }}
  >
    <div class="head" role="rowgroup">
      <div class="row" role="row" aria-rowindex="1">
        <div class="name" role="columnheader">Sample</div>
        ${columns.map(
          (column, i) =>
            html`<div class=${classes("cell", column.kind, (i === before || i === after) && "chosen")} role="columnheader"
              title=${column.kind === "arm" ? `rejected candidate of ${column.label}` : `version ${column.version}`}>
              ${column.label.replace("step ", "s")}
            </div>`,
        )}
        <div class="moved" role="columnheader" title=${`${columns[before].label} → ${columns[after].label}`}>change</div>
      </div>
    </div>
    <div class="body" role="rowgroup" style=${{ height: `${Math.max(1, items.length) * ROW}px` }}>
      ${items.length ? null : html`<div class="row" role="row" style=${{ top: 0 }}><div class="name" role="rowheader">No sample matches.</div></div>`}
      ${shown.map(([item, index]) =>
        typeof item === "number"
          ? html`<${Row} key=${item} place=${item} index=${index} samples=${samples} columns=${columns} before=${before}
              after=${after} active=${active && active[0] === index ? active[1] : null} />`
          : html`<div key=${item.name} class="row split" role="row" aria-rowindex=${index + 2} style=${{ top: `${index * ROW}px` }}>
              <div class="name" role="rowheader"><b>${item.name}</b> <span>${count(item.n)} · ${ABOUT_SPLIT[item.name]}</span></div>
            </div>`,
      )}
    </div>
  </div>`;
}
