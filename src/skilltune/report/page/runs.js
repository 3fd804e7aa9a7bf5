// The list of runs, the comparison of two of them, and the start of a new one.
import { html, useEffect, useMemo, useState } from "./preact.js";
import { amount, count, date, modelName, money, percent, plural, points } from "./format.js";
import { Interval, ScoreChart, Sparkline, scoreRange } from "./charts.js";
import { Diff } from "./diff.js";
import { Dialog } from "./actions.js";
import { SPLITS } from "./model.js";
import { Figures, Section, StateChip } from "./run.js";

const pathOf = (run) => `/runs/${encodeURIComponent(run.id)}`;

function Gain({ run }) {
  if (run.gain === null) return html`<span class="soft">–</span>`;
  const proven = run.source === "test";
  return html`<span class=${proven && run.low > 0 ? "good" : ""}>${points(run.gain)}</span>
    <small class="soft">${proven ? `${points(run.low)} to ${points(run.high)}` : "on select, not proven"}</small>`;
}

export function Runs({ transport, hash, setHash }) {
  const [list, setList] = useState(null);
  const [error, setError] = useState(null);
  const [connected, setConnected] = useState(true);
  const [starting, setStarting] = useState(false);
  const query = hash.q || "";
  const chosen = (hash.compare || "").split(",").filter(Boolean);
  useEffect(() => {
    const read = () => transport.runs().then(setList, setError);
    read();
    return transport.follow(null, (type, data) => {
      if (type === "runs") setList(data);
      else if (type === "connected") setConnected(data);
      else read();
    });
  }, []);
  if (error) return html`<p class="bad">${error.message} ${error.fix}</p>`;
  if (!list) return html`<p class="soft">Reading the runs …</p>`;
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = list.runs.filter((run) => {
    const text = `${run.id} ${run.name} ${run.state} ${run.target} ${run.optimizer}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  const toggle = (id) => setHash({ compare: (chosen.includes(id) ? chosen.filter((each) => each !== id) : [...chosen, id].slice(-2)).join(",") });
  return html`
    <header class="list">
      <h1>Runs</h1>
      <p class="lead">${plural(list.runs.length, "run")}${connected ? "" : " · the connection is lost; this page tries again by itself"}</p>
    </header>
    <div class="fields">
      <label class="grow">Search <input type="search" id="search" value=${query} placeholder="name, state or model ( / )" onInput=${(event) => setHash({ q: event.target.value })} /></label>
      ${list.read_only ? null : html`<button type="button" class="main" onClick=${() => setStarting(true)}>New run</button>`}
    </div>
    ${starting ? html`<${Start} transport=${transport} close=${() => setStarting(false)} />` : null}
    ${list.runs.length ? null : html`<p>There is no run in this folder yet. Start one with <code>skilltune train</code>${list.read_only ? "" : " or with the button above"}.</p>`}
    ${chosen.length === 2 ? html`<${Compare} transport=${transport} ids=${chosen} close=${() => setHash({ compare: "" })} />` : null}
    ${chosen.length === 1 ? html`<p class="soft" role="status">Choose a second run to compare with.</p>` : null}
    ${list.runs.length
      ? html`<div class="scroll">
          <table class="runs">
            <thead><tr><th scope="col"><span class="hidden">compare</span></th><th scope="col">run</th><th scope="col">state</th><th scope="col">select, by verdict</th>
              <th scope="col" class="num">best gain, points</th><th scope="col" class="num">cost</th><th scope="col">models</th><th scope="col">started</th></tr></thead>
            <tbody>${shown.map(
              (run) => html`<tr key=${run.id}>
                <td><input type="checkbox" aria-label=${`Compare ${run.id}`} checked=${chosen.includes(run.id)} onChange=${() => toggle(run.id)} /></td>
                <th scope="row"><a href=${pathOf(run)}>${run.id.replaceAll("~1", "/").replaceAll("~0", "~")}</a>${run.name && run.name !== run.id ? html`<small class="soft">${run.name}</small>` : null}</th>
                <td><${StateChip} state=${run.state} /><small class="soft">${run.state === "running" && run.steps ? `step ${run.step} of ${run.steps}` : plural(run.versions, "version")}</small></td>
                <td><${Sparkline} values=${run.spark} label=${run.spark.length ? `Estimated score on select, from ${percent(run.spark[0])} to ${percent(run.spark[run.spark.length - 1])}` : "no score yet"} /></td>
                <td class="num"><${Gain} run=${run} /></td>
                <td class="num">${money(run.usd)}<small class="soft">${count(run.calls)} calls</small></td>
                <td>${modelName(run.target)}<small class="soft">by ${modelName(run.optimizer)}</small></td>
                <td>${date(run.started)}</td>
              </tr>`,
            )}</tbody>
          </table>
        </div>`
      : null}`;
}

// -- two runs side by side

function Compare({ transport, ids, close }) {
  const [pages, setPages] = useState(null);
  const [error, setError] = useState(null);
  useEffect(() => {
    setPages(null);
    Promise.all(ids.map((id) => transport.page(id))).then(setPages, setError);
  }, [ids.join(",")]);
  const body = () => {
    if (error) return html`<p class="bad">${error.message}</p>`;
    if (!pages) return html`<p class="soft">Reading both runs …</p>`;
    const ships = pages.map((page) => page.versions.find((version) => version.ships));
    const ends = pages.flatMap((page) => page.versions.flatMap((v) => Object.values(v.scores).flatMap((s) => [s.low, s.high])));
    return html`<div class="beside">
        ${pages.map(
          (page, i) => html`<article>
            <h3><a href=${pathOf({ id: ids[i] })}>${ids[i].replaceAll("~1", "/")}</a> <${StateChip} state=${page.state} /></h3>
            <p>${page.decision.claim}</p>
            <${Figures} decision=${page.decision} />
            <p class="soft small">${modelName(page.setup.target)} by ${modelName(page.setup.optimizer)} · ${page.setup.preset} · seed ${page.setup.seed} · ${count(page.money.total.calls)} calls · ${money(page.money.total.usd)}</p>
            ${SPLITS.filter((name) => page.versions.some((v) => v.scores[name])).map(
              (name) => html`<figure><figcaption><b>${name}</b></figcaption>
                <${ScoreChart} range=${scoreRange(ends)} names=${page.versions.map((v) => (v.number ? `v${v.number}` : "input"))} label=${`Scores on ${name}`}
                  marks=${page.versions.flatMap((v, x) => (v.scores[name] ? [{ x, mid: v.scores[name].mean, ...v.scores[name], ships: v.ships }] : []))} /></figure>`,
            )}
          </article>`,
        )}
      </div>
      <h3>Difference of what they ship</h3>
      ${ships.every((version) => version && version.text !== null)
        ? html`<${Diff} before=${ships[0].text} after=${ships[1].text} label="Difference of the two shipped skills" />`
        : html`<p class="soft">One of the texts is not on this page.</p>`}`;
  };
  return html`<${Section} id="compare" title="Two runs side by side">
    <button type="button" class="quiet" onClick=${close}>Close the comparison</button>
    ${body()}
  <//>`;
}

// -- a new run

const NEEDED = [
  { name: "skill", label: "Skill: a folder with SKILL.md, or a .md file", required: true, placeholder: "skills/invoice-totals" },
  { name: "tasks", label: "Tasks: a file of samples, or evals.json", required: true, placeholder: "invoices.jsonl" },
  { name: "target", label: "Target: the model or agent that does the tasks", required: true, placeholder: "openai/gpt-…" },
  { name: "optimizer", label: "Optimizer (empty: the target's model)", placeholder: "anthropic/claude-…" },
  { name: "score", label: "Scorer (empty: by the tasks file)", placeholder: "exact" },
  { name: "budget", label: "Budget", placeholder: "5 usd" },
];

function Start({ transport, close }) {
  const [plan, setPlan] = useState(null); // {body, report}
  if (!plan)
    return html`<${Dialog} key="check" title="New run" effect="First everything is checked and the cost is estimated. Nothing is spent before you confirm." verb="Check" fields=${NEEDED} close=${close}
      confirm=${async (values) => {
        const body = Object.fromEntries(Object.entries(values).filter(([, value]) => value));
        const report = await transport.check(body);
        setPlan({ body, report });
        return false;
      }} />`;
  return html`<${Dialog} key="start" title="Start this run?" verb="Start" close=${close}
    effect=${html`<${Report} report=${plan.report} />`}
    confirm=${async () => {
      const { id } = await transport.start(plan.body);
      location.href = pathOf({ id });
    }} />`;
}

/** The report of `check`: its remarks and the estimate, as the command line prints them. */
function Report({ report }) {
  const lines = report.lines || report.remarks || [];
  return html`<div class="check">
    ${report.text ? html`<pre>${report.text}</pre>` : null}
    ${lines.length ? html`<ul class="plain">${lines.map((line) => html`<li>${typeof line === "string" ? line : JSON.stringify(line)}</li>`)}</ul>` : null}
    ${report.estimate ? html`<table>${Object.entries(report.estimate).map(([name, value]) => html`<tr><th scope="row">${name.replaceAll("_", " ")}</th><td>${Array.isArray(value) ? value.map((each) => (typeof each === "number" ? amount(each) : each)).join(" to ") : String(value)}</td></tr>`)}</table>` : null}
  </div>`;
}
