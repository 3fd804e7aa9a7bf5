// The page: which part is shown, what the address says, keys, and the theme.
import { html, render, useEffect, useMemo, useRef, useState, useErrorBoundary } from "./preact.js";
import { nameOf } from "./format.js";
import { openTransport } from "./transport.js";
import { columnAt, keyOf, shippedColumn } from "./model.js";
import { Actions } from "./actions.js";
import { Runs } from "./runs.js";
import { Transcript } from "./transcript.js";
import {
  ActivationSection,
  ControlsSection,
  DecisionSection,
  EditsSection,
  LiveSection,
  LogSection,
  SamplesSection,
  ScoresSection,
  SpendSection,
} from "./run.js";

const FORMAT = 1; // of the data; see history/page.py
const LATE_S = 1; // between two redraws of the ages of calls

// -- the address: #name=value&…, or #section

function readHash() {
  const text = location.hash.slice(1);
  return text.includes("=") ? Object.fromEntries(new URLSearchParams(text)) : text ? { at: text } : {};
}

function useHash() {
  const [hash, set] = useState(readHash);
  useEffect(() => {
    const follow = () => set(readHash());
    addEventListener("hashchange", follow);
    addEventListener("popstate", follow);
    return () => {
      removeEventListener("hashchange", follow);
      removeEventListener("popstate", follow);
    };
  }, []);
  const change = (values, step = false) => {
    const next = { ...readHash(), ...values };
    for (const name of Object.keys(next)) if (next[name] === "" || next[name] === null || next[name] === undefined) delete next[name];
    const text = new URLSearchParams(next).toString();
    const address = `${location.pathname}${location.search}${text ? `#${text}` : ""}`;
    if (step) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
    set(next);
  };
  return [hash, change];
}

// -- the theme

const THEMES = ["", "light", "dark"];
const THEME_NAMES = { "": "as the system", light: "light", dark: "dark" };

function readTheme() {
  try {
    const known = localStorage.getItem("skilltune-theme") || "";
    return THEMES.includes(known) ? known : "";
  } catch {
    return "";
  }
}

function Theme() {
  const [theme, setTheme] = useState(readTheme);
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("skilltune-theme", theme);
    } catch {
      // a file has no storage in some browsers; the theme then lasts as long as the page
    }
  }, [theme]);
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  return html`<button type="button" class="quiet" id="theme" onClick=${() => setTheme(next)} aria-label=${`Theme: ${THEME_NAMES[theme]}; change to ${THEME_NAMES[next]}`}
    title=${`Theme: ${THEME_NAMES[theme]}`}>${{ "": "◐", light: "○", dark: "●" }[theme]}</button>`;
}

// -- the frame

const KEYS = [
  ["/", "search"],
  ["arrow keys, Enter", "move in the matrix, show the transcript"],
  ["j, k", "next and previous sample of an open transcript"],
  ["Esc", "close the transcript"],
  ["t", "change the theme"],
  ["?", "these keys"],
];

function Help({ close }) {
  const box = useRef(null);
  useEffect(() => box.current.showModal(), []);
  return html`<dialog ref=${box} onClose=${close} aria-labelledby="keys-title">
    <h2 id="keys-title">Keys</h2>
    <dl class="setup">${KEYS.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}</dl>
    <form method="dialog"><p class="buttons"><button class="main">Close</button></p></form>
  </dialog>`;
}

function Frame({ title, home, sections, go, children }) {
  const [help, setHelp] = useState(false);
  useEffect(() => {
    const onKey = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
      if (event.key === "/") document.getElementById("search")?.focus();
      else if (event.key === "?") setHelp(true);
      else if (event.key === "t") document.getElementById("theme").click();
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  return html`
    <a class="skip" href="#main">Skip to the content</a>
    <header class="top">
      <div class="wide">
        ${home ? html`<a class="brand" href="/">skilltune</a>` : html`<span class="brand">skilltune</span>`}
        <span class="where">${title}</span>
        <nav aria-label="Sections">${sections.map(([id, name]) => html`<a href=${`#at=${id}`} onClick=${(event) => go(event, id)}>${name}</a>`)}</nav>
        <button type="button" class="quiet" onClick=${() => setHelp(true)} aria-label="Keys" title="Keys">?</button>
        <${Theme} />
      </div>
    </header>
    <main id="main" tabindex="-1">${children}</main>
    ${help ? html`<${Help} close=${() => setHelp(false)} />` : null}`;
}

// -- a run

function RunPage({ id, transport }) {
  const [page, setPage] = useState(null);
  const [error, setError] = useState(null);
  const [connected, setConnected] = useState(true);
  const [now, setNow] = useState(Date.now() / 1000);
  const [hash, setHash] = useHash();
  const opener = useRef(null); // has the focus again when the transcript is closed
  useEffect(() => {
    transport.page(id).then(setPage, setError);
    return transport.follow(id, (type, data) => {
      if (type === "page") {
        setPage(data);
        setError(null);
      } else if (type === "connected") setConnected(data);
      else if (type === "state") setPage((old) => old && { ...old, state: data.state });
      else if (type === "gone" || type === "problem") setError({ message: data.error, fix: data.fix || "" });
      else if (type === "log") setPage((old) => old && { ...old, log: appended(old.log, data) });
    });
  }, [id]);
  const title = page === null ? "" : transport.live ? nameOf(id) : page.name; // runs of one skill have one name
  const running = page !== null && page.state === "running";
  useEffect(() => {
    if (!running) return undefined;
    const timer = setInterval(() => setNow(Date.now() / 1000), 1000 * LATE_S);
    return () => clearInterval(timer);
  }, [running]);
  useEffect(() => {
    if (page) document.title = `${title} · skilltune`;
  }, [page && title]);
  useEffect(() => {
    if (page && hash.at) document.getElementById(hash.at)?.scrollIntoView();
  }, [page !== null, hash.at]);

  const view = useMemo(() => {
    if (!page || !page.columns.length) return null;
    return {
      before: columnAt(page, hash.a, 0),
      after: columnAt(page, hash.b, shippedColumn(page)),
      show: hash.show || "all",
      split: hash.split || "",
      query: hash.q || "",
    };
  }, [page, hash]);
  if (error) return html`<${Frame} title="" home=${transport.live} sections=${[]}><p class="bad">${error.message}</p><p>${error.fix}</p><//>`;
  if (!page) return html`<${Frame} title="" home=${transport.live} sections=${[]}><p class="soft">Reading the run …</p><//>`;
  if (page.format !== FORMAT)
    return html`<${Frame} title=${title} home=${transport.live} sections=${[]}><p class="bad">This page was made by another version of skilltune than its data. Reload it.</p><//>`;

  const choose = (values) =>
    setHash({
      ...("before" in values ? { a: page.columns[values.before].hash } : {}),
      ...("after" in values ? { b: page.columns[values.after].hash } : {}),
      ...("show" in values ? { show: values.show === "all" ? "" : values.show } : {}),
      ...("split" in values ? { split: values.split } : {}),
      ...("query" in values ? { q: values.query } : {}),
    });
  const show = (place, column, attempt = 0, step = true) => setHash({ t: keyOf(page.columns[column], place, attempt), at: "" }, step);
  const at = placeOf(page, hash.t);
  const close = () => {
    setHash({ t: "" });
    const before = opener.current;
    (before && before.isConnected ? before : document.querySelector(".grid"))?.focus({ preventScroll: true });
  };
  const sections = [
    ["decision", "Decision"],
    ["scores", "Scores"],
    ["samples", "Samples"],
    ["edits", "Edits"],
    ["spend", "Spend"],
    ["log", "Log"],
  ];
  const open = (place, column) => {
    opener.current = document.activeElement;
    show(place, column);
  };
  const go = (event, id) => {
    event.preventDefault();
    setHash({ at: id });
    document.getElementById(id)?.scrollIntoView();
  };
  return html`<${Frame} title=${title} home=${transport.live} sections=${sections} go=${go}>
    <${DecisionSection} page=${page} actions=${transport.live ? html`<${Actions} id=${id} transport=${transport} state=${page.state} />` : null} />
    <${LiveSection} page=${page} connected=${connected} now=${now} />
    <${ScoresSection} page=${page} />
    <${SamplesSection} page=${page} view=${view} choose=${choose} open=${open} />
    <${EditsSection} page=${page} open=${open} />
    <${ActivationSection} page=${page} />
    <${ControlsSection} page=${page} />
    <${SpendSection} page=${page} />
    <${LogSection} page=${page} />
    <footer class="soft small">skilltune ${page.program}${transport.live ? "" : " · made from run.db alone; this file needs no network"}</footer>
    ${at
      ? html`<${Transcript} page=${page} id=${id} transport=${transport} at=${at} close=${close}
          move=${({ place, column, attempt }) => show(place, column, attempt, false)} />`
      : null}
  <//>`;
}

/** The log with a new line, unless the page already has it. */
function appended(log, entry) {
  const last = log[log.length - 1];
  return last && entry.at <= last.at ? log : [...log, { tone: "", ...entry }];
}

function placeOf(page, key) {
  const [hash, place, attempt] = (key || "").split("-");
  const column = page.columns.findIndex((each) => each.hash === hash);
  if (column < 0 || !(Number(place) < page.samples.ids.length)) return null;
  return { column, place: Number(place), attempt: Number(attempt) || 0 };
}

// -- the start

function App({ transport }) {
  const [broken] = useErrorBoundary((error) => console.error(error));
  if (broken) return html`<main id="main"><h1>This page could not be shown.</h1><p>${String(broken.message || broken)}</p></main>`;
  if (!transport.live) return html`<${RunPage} id="" transport=${transport} />`;
  const found = /^\/runs\/([^/]+)\/?$/.exec(location.pathname);
  if (found) return html`<${RunPage} id=${decoded(found[1])} transport=${transport} />`;
  return html`<${List} transport=${transport} />`;
}

/** A part of an address as text. One that is no UTF-8 stays as it is, and then names nothing. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function List({ transport }) {
  const [hash, setHash] = useHash();
  return html`<${Frame} title="" home=${true} sections=${[]}><${Runs} transport=${transport} hash=${hash} setHash=${setHash} /><//>`;
}

const root = document.getElementById("app");
root.textContent = "";
render(html`<${App} transport=${openTransport(JSON.parse(document.getElementById("data").textContent))} />`, root);
document.documentElement.dataset.ready = "true";
