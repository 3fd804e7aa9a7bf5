// The list of runs, the comparison of two of them, and the start of a new one.
import { html, useEffect, useState } from "./preact.js";
import { count, date, modelName, money, nameOf, percent, plural, points } from "./format.js";
import { ScoreChart, Sparkline, scoreRange } from "./charts.js";
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
      if (type === "runs") {
        setList(data);
        setError(null);
      } else if (type === "connected") setConnected(data);
      else read();
    });
  }, []);
  if (error) return html`<p class="bad">${error.message} ${error.fix}</p>`;
  if (!list) return html`<p class="soft">Reading the runs …</p>`;
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = list.runs.filter((run) => {
    const text = [run.id, run.name, run.state, run.target, run.optimizer].join(" ").toLowerCase();
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
            <tbody>${shown.map((run) => run.error ? html`<${Unreadable} key=${run.id} run=${run} />` : html`<tr key=${run.id}>
                <td><input type="checkbox" aria-label=${`Compare ${run.id}`} checked=${chosen.includes(run.id)} onChange=${() => toggle(run.id)} /></td>
                <th scope="row"><a href=${pathOf(run)}>${nameOf(run.id)}</a>${run.name && run.name !== run.id ? html`<small class="soft">${run.name}</small>` : null}</th>
                <td><${StateChip} state=${run.state} /><small class="soft">${run.state === "running" && run.steps ? `step ${run.step} of ${run.steps}` : plural(run.versions, "version")}</small></td>
                <td><${Sparkline} values=${run.spark} label=${run.spark.length ? `Estimated score on select, from ${percent(run.spark[0])} to ${percent(run.spark[run.spark.length - 1])}` : "no score yet"} /></td>
                <td class="num"><${Gain} run=${run} /></td>
                <td class="num">${money(run.usd)}<small class="soft">${count(run.calls)} calls</small></td>
                <td>${modelName(run.target)}<small class="soft">by ${modelName(run.optimizer)}</small></td>
                <td>${date(run.started)}</td>
              </tr>`)}</tbody>
          </table>
        </div>`
      : null}
    ${list.read_only ? null : html`<${Drafts} transport=${transport} />`}`;
}

function Unreadable({ run }) {
  return html`<tr><td></td><th scope="row">${nameOf(run.id)}</th><td colspan="6" class="bad wide">${run.error}</td></tr>`;
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
            <h3><a href=${pathOf({ id: ids[i] })}>${nameOf(ids[i])}</a> <${StateChip} state=${page.state} /></h3>
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

/** The fields of a new run; the server offers the skills and files of tasks of its folder. */
const fieldsOf = (offers) => [
  { name: "skill", label: "Skill: a folder with SKILL.md, or a .md file", required: true, offers: offers.skills.map((each) => each.path) },
  { name: "tasks", label: "Tasks: a .jsonl file (empty: the skill's own evals)", offers: offers.tasks },
  { name: "target", label: "Target: the model or agent that does the tasks", placeholder: "openai/gpt-…" },
  { name: "optimizer", label: "Optimizer (empty: the target's model)", placeholder: "anthropic/claude-…" },
  { name: "score", label: "Score (empty: by the tasks)", placeholder: "exact" },
  { name: "amount", label: "Most that it may cost", type: "number", min: "0", step: "any" },
  { name: "unit", label: "in", choices: ["usd", "calls", "tokens", "minutes"] },
];

/** The order for a training, from the values of the form. */
function orderOf({ amount: most, unit, ...values }) {
  const named = Object.fromEntries(Object.entries(values).filter(([, value]) => value));
  return most ? { ...named, budget: { [unit]: Number(most) } } : named;
}

function Start({ transport, close }) {
  const [offers, setOffers] = useState(null);
  const [plan, setPlan] = useState(null); // {order, report}
  useEffect(() => {
    transport.offers().then(setOffers, close);
  }, []);
  if (!offers) return null;
  const effectOf = (name) => (offers.actions.find((action) => action.name === name) || { effect: "" }).effect;
  if (!plan)
    return html`<${Dialog} key="check" title="New run" effect=${effectOf("check")} verb="Check" fields=${fieldsOf(offers)} close=${close}
      confirm=${async (values) => {
        const order = orderOf(values);
        setPlan({ order, report: await transport.check(order) });
        return false;
      }} />`;
  return html`<${Dialog} key="start" title=${plan.report.fine ? "Start this training?" : "This cannot be started yet"} verb="Start training" close=${close}
    effect=${plan.report.fine ? effectOf("start") : ""} disabled=${!plan.report.fine}
    confirm=${async () => {
      const { id } = await transport.start(plan.order);
      location.href = pathOf({ id });
    }}><${Findings} report=${plan.report} /><//>`;
}

/** The findings of `check`, as the command line prints them. */
function Findings({ report }) {
  return html`<div class="check">
    ${report.problems.length ? html`<ul class="plain bad">${report.problems.map((each) => html`<li>${each}</li>`)}</ul>` : null}
    <dl class="setup">${report.rows.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${report.preview ? html`<details><summary>The first task as the target gets it</summary><pre>${report.preview}</pre></details>` : null}
  </div>`;
}

// -- drafted samples

/** The files that hold drafts; the drafts of one of them are reviewed one after another. */
function Drafts({ transport }) {
  const [files, setFiles] = useState([]);
  const [open, setOpen] = useState("");
  const read = () => transport.drafts().then((found) => setFiles(found.files), () => setFiles([]));
  useEffect(() => {
    read();
  }, []);
  if (!files.length) return null;
  return html`<${Section} id="drafts" title="Drafted samples" lead="A draft counts as a sample only after somebody has read it.">
    <ul class="plain">${files.map(
      (each) => html`<li><button type="button" class="link" aria-expanded=${String(open === each.file)} onClick=${() => setOpen(open === each.file ? "" : each.file)}>${each.file}</button>
        <span class="soft">${plural(each.drafts, "draft")}, ${plural(each.samples, "sample")}</span></li>`,
    )}</ul>
    ${open ? html`<${Review} key=${open} transport=${transport} file=${open} done=${read} />` : null}
  <//>`;
}

function Review({ transport, file, done }) {
  const [drafts, setDrafts] = useState(null);
  const [asked, setAsked] = useState(null); // {draft, decision}
  const [text, setText] = useState(null);
  const [error, setError] = useState("");
  const read = () => transport.draftsOf(file).then((found) => setDrafts(found.samples), (failure) => setError(failure.message));
  useEffect(() => {
    read();
  }, []);
  if (error) return html`<p class="bad" role="alert">${error}</p>`;
  if (!drafts) return html`<p class="soft">Reading the drafts …</p>`;
  if (!drafts.length) return html`<p class="soft" role="status">Every draft of ${file} is reviewed.</p>`;
  const [draft] = drafts;
  const shown = text === null ? JSON.stringify(draft.sample, null, 2) : text;
  const changed = text !== null && text !== JSON.stringify(draft.sample, null, 2);
  const effects = {
    keep: "The draft becomes a sample of this file, as it is.",
    edit: "The draft becomes a sample of this file, with your changes.",
    delete: "The draft is removed from this file.",
  };
  return html`<div class="review">
    <p class="soft">Draft 1 of ${drafts.length}: ${draft.id}</p>
    <label>The sample<textarea rows="12" spellcheck="false" value=${shown} onInput=${(event) => setText(event.target.value)}></textarea></label>
    <p class="buttons">
      <button type="button" onClick=${() => setAsked("delete")}>Delete …</button>
      <button type="button" class="main" onClick=${() => setAsked(changed ? "edit" : "keep")}>${changed ? "Keep with changes …" : "Keep …"}</button>
    </p>
    ${asked
      ? html`<${Dialog} title=${asked === "delete" ? "Delete this draft?" : "Keep this draft?"} effect=${effects[asked]} verb=${asked === "delete" ? "Delete" : "Keep"} close=${() => setAsked(null)}
          confirm=${async () => {
            await transport.review(file, { decision: asked, digest: draft.digest, ...(asked === "edit" ? { sample: JSON.parse(shown) } : {}) });
            setText(null);
            read();
            done();
          }} />`
      : null}
  </div>`;
}
