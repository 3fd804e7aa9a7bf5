// The page of one run, from the decision down to the log.
import { html, useMemo, useState } from "./preact.js";
import { amount, classes, count, date, duration, modelName, money, percent, plural, points, time } from "./format.js";
import { Bar, Interval, Posterior, RaceChart, ScoreChart, scoreRange } from "./charts.js";
import { ABOUT_SPLIT, SPLITS, compared } from "./model.js";
import { Diff } from "./diff.js";
import { Matrix } from "./matrix.js";

export function StateChip({ state }) {
  return html`<span class=${`chip ${state}`}><i aria-hidden="true"></i>${state}</span>`;
}

export function Section({ id, title, lead, children }) {
  return html`<section id=${id} aria-labelledby=${`${id}-title`}>
    <h2 id=${`${id}-title`}>${title}</h2>
    ${lead ? html`<p class="lead">${lead}</p>` : null}
    ${children}
  </section>`;
}

function Fact({ name, value, more }) {
  return html`<div><dt>${name}</dt><dd>${value}${more ? html`<small>${more}</small>` : null}</dd></div>`;
}

// -- decision

const range = (low, high, digits = 1) => `${points(low, digits)} to ${points(high, digits)}`;
const level = (value) => `${+(100 * value).toPrecision(3)} %`;
const pValue = (p) => (p >= 0.001 ? p.toFixed(3) : p.toExponential(0).replace("e-", " · 10⁻").replace(/⁻(\d+)$/, (_, n) => `⁻${[...n].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("")}`));

export function Figures({ decision }) {
  const d = decision;
  if (d.gain === null) return null;
  const proven = d.source === "test";
  const label = proven ? `Gain ${points(d.gain)} points, ${level(d.level)} interval ${range(d.low, d.high)} points` : "";
  return html`<div class="figures">
    <div class="gain">
      <p class=${classes("huge", proven && d.low > 0 && "good", proven && d.high < 0 && "bad")}>${points(d.gain)}<small> points</small></p>
      ${proven
        ? html`<${Interval} mid=${d.gain} low=${d.low} high=${d.high} label=${label} />
            <p class="soft small">${level(d.level)} interval ${range(d.low, d.high)}, on the untouched test split</p>`
        : html`<p class="soft small">The gate's estimate on select. It was chosen for being high, so it proves nothing.</p>`}
    </div>
    <dl class="facts">
      <${Fact} name=${proven ? "test score" : "select score"} value=${`${percent(d.before)} → ${percent(d.after)}`} more=${d.samples} />
      ${proven
        ? html`<${Fact} name="fixed and broken" value=${`${count(d.fixed)} fixed, ${count(d.broken)} broken`} more=${d.notes.join(" ")} />
            <${Fact} name="chance" value=${`p = ${pValue(d.p)}`} more=${`of such a gain without an effect; ${d.method}`} />
            <${Fact} name="cost of a task" value=${`${d.tokens < 0 ? "−" : "+"}${count(Math.abs(d.tokens))} tokens`}
              more=${d.usd === null ? "price unknown" : d.usd ? `${d.usd < 0 ? "−" : "+"}$${Math.abs(d.usd).toFixed(5)}` : "$0"} />`
        : null}
      ${d.also.map(
        (row) => html`<${Fact} name=${`on ${modelName(row.target)}`} value=${`${percent(row.before)} → ${percent(row.after)}`}
          more=${`${range(row.low, row.high)}; ${row.harmless ? "no loss above" : "does not exclude a loss above"} ${+(100 * row.margin).toPrecision(3)} points`} />`,
      )}
    </dl>
  </div>`;
}

function Setup({ page }) {
  const { setup, samples, versions } = page;
  const [start] = versions;
  const ships = versions.find((version) => version.ships);
  const size = start && ships && start.tokens !== null && ships.tokens !== null ? `${start.tokens} → ${ships.tokens} tokens` : null;
  const parts = [
    ["target", modelName(setup.target)],
    ["optimizer", modelName(setup.optimizer)],
    setup.proposals ? ["proposals", setup.proposals] : null,
    setup.judge ? ["judge", modelName(setup.judge)] : null,
    ["samples", `${SPLITS.map((name) => `${count(samples.all[name])} ${name}`).join(" · ")}`],
    size ? ["skill", size] : null,
    ["gate", `${setup.gate || "–"} · preset ${setup.preset || "–"} · seed ${setup.seed ?? "–"}`],
    ["started", date(page.started)],
  ].filter(Boolean);
  return html`<dl class="setup">${parts.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

export function DecisionSection({ page, actions }) {
  const { decision } = page;
  return html`<section id="decision" class=${`decision ${decision.kind}`} aria-labelledby="decision-title">
    <p class="kicker"><${StateChip} state=${page.state} /> ${page.name}</p>
    <h1 id="decision-title">${decision.claim}</h1>
    <${Figures} decision=${decision} />
    ${page.ending && page.state !== "running" ? html`<p class="note">The training ended early: ${page.ending}</p>` : null}
    ${page.stopped && page.state !== "running" ? html`<p class="note bad">Stopped: ${page.stopped}</p>` : null}
    ${page.state === "died"
      ? html`<p class="note bad">The process of this run ended without a word. Everything that was paid is kept; the same command goes on.</p>`
      : null}
    ${page.resume ? html`<p class="note">To go on: <code>${page.resume}</code></p>` : null}
    ${actions}
    <${Setup} page=${page} />
  </section>`;
}

// -- live

function Race({ race }) {
  if (!race || race.gain === null || race.gain === undefined || !race.sd) return null;
  const arms = race.arms || [race];
  return html`<div class="racing">
    <h3>Race of the candidate</h3>
    ${arms.map(
      (arm) => html`<div>
        <${Posterior} gain=${arm.gain} sd=${arm.sd} label=${`Posterior of the gain: ${points(arm.gain)} ± ${(100 * arm.sd).toFixed(1)} points`} />
        <p class="soft small">${arm.name ? html`<b>${arm.name}</b> · ` : null}${points(arm.gain)} ± ${(100 * arm.sd).toFixed(1)} points after ${plural(arm.n, "rollout")}${
          arm.p_better === null || arm.p_better === undefined ? "" : ` · P(better) ${arm.p_better.toFixed(2)}`
        }</p>
      </div>`,
    )}
  </div>`;
}

export function LiveSection({ page, connected, now }) {
  if (page.state !== "running") return null;
  const live = page.live || {};
  const step = live.step || page.step;
  const steps = live.steps || page.steps;
  const flights = live.in_flight || [];
  const inFlight = live.calls === undefined ? flights.length : live.calls;
  const byRole = {};
  for (const flight of flights) byRole[flight.role] = (byRole[flight.role] || 0) + 1;
  const oldest = flights.length ? Math.min(...flights.map((flight) => flight.since)) : null;
  const last = page.log.slice(-4).reverse();
  return html`<section id="live" class="live" aria-labelledby="live-title">
    <h2 id="live-title">Now</h2>
    ${connected ? null : html`<p class="note bad" role="status">The connection is lost; this page tries again by itself. The run goes on.</p>`}
    <div class="now">
      <div>
        <p class="big" role="status">${[step ? `Step ${step} of ${steps || "?"}` : "", live.phase || ""].filter(Boolean).join(" · ") || "Starting"}</p>
        ${steps ? html`<${Bar} most=${steps} parts=${[{ value: page.step, kind: "done" }]} label=${`${page.step} of ${steps} steps are judged`} />` : null}
        <p class="soft small">${page.step} of ${steps || "?"} steps judged · ${count(page.money.total.calls)} calls · ${money(page.money.total.usd)}</p>
      </div>
      <div>
        <p class="big">${plural(inFlight, "call")} in flight</p>
        <p class="soft small">${Object.entries(byRole).map(([role, n]) => `${n} ${role}`).join(" · ") || "none at the moment"}${
          oldest ? ` · the oldest for ${duration(now - oldest)}` : ""
        }</p>
        ${live.workers && html`<p class="soft small">${live.workers}</p>`}
        ${flights.length
          ? html`<details><summary>Which samples</summary><ul class="plain small">
              ${flights.slice(0, 40).map((flight) => html`<li>${flight.role} · ${flight.sample || "–"} <span class="soft">${duration(now - flight.since)}</span></li>`)}
            </ul></details>`
          : null}
      </div>
      <${Race} race=${live.race} />
    </div>
    ${last.length ? html`<ol class="log" reversed aria-label="Last events">${last.map((entry) => html`<${LogLine} entry=${entry} />`)}</ol>` : null}
  </section>`;
}

// -- scores

export function ScoresSection({ page }) {
  const { versions } = page;
  if (!versions.length) return html`<${Section} id="scores" title="Score per version"><p class="soft">Nothing was measured yet.</p><//>`;
  const names = versions.map((version) => (version.number ? `v${version.number}` : "input"));
  const all = versions.flatMap((version) => Object.values(version.scores).flatMap((each) => [each.low, each.high]));
  const bounds = scoreRange(all);
  const shown = SPLITS.filter((name) => versions.some((version) => version.scores[name]));
  return html`<${Section} id="scores" title="Score per version"
    lead="Mean score and 95 % interval in percent. Only test was untouched until the end; select chose the version, so it flatters.">
    <div class="panels">
      ${shown.map((name) => {
        const marks = versions.flatMap((version, x) =>
          version.scores[name] ? [{ x, mid: version.scores[name].mean, ...version.scores[name], ships: version.ships }] : [],
        );
        return html`<figure>
          <figcaption><b>${name}</b> <span>${ABOUT_SPLIT[name]}</span></figcaption>
          <${ScoreChart} marks=${marks} names=${names} range=${bounds} label=${`Scores on ${name}; the table below has the figures`} />
        </figure>`;
      })}
    </div>
    <details class="table">
      <summary>The figures, and why each version was accepted</summary>
      <div class="scroll" tabindex="0" role="region" aria-label="Every accepted version">
        <table>
          <thead><tr><th scope="col">version</th><th scope="col" class="num">tokens</th>
            ${shown.map((name) => html`<th scope="col" class="num">${name}</th>`)}
            <th scope="col" class="num">select, by the gate</th><th scope="col">reason</th></tr></thead>
          <tbody>${versions.map(
            (version, i) => html`<tr>
              <th scope="row">${names[i]}${version.ships ? html` <span class="badge good">${page.state === "finished" ? "ships" : "best so far"}</span>` : null}</th>
              <td class="num">${version.tokens === null ? "–" : count(version.tokens)}</td>
              ${shown.map((name) => {
                const seen = version.scores[name];
                return html`<td class="num">${seen ? html`${percent(seen.mean)}<small>${percent(seen.low, 0)} to ${percent(seen.high, 0)}, n = ${count(seen.n)}</small>` : "–"}</td>`;
              })}
              <td class="num">${version.estimate ? html`${percent(version.estimate[0])}<small>${percent(version.estimate[1], 0)} to ${percent(version.estimate[2], 0)}</small>` : "–"}</td>
              <td class="wide">${version.reason}</td>
            </tr>`,
          )}</tbody>
        </table>
      </div>
    </details>
  <//>`;
}

// -- samples, and the comparison of two columns

function columnName(column) {
  if (column.kind === "arm") return `rejected candidate of ${column.label}`;
  return column.version ? `version ${column.version}` : "the input";
}

export function SamplesSection({ page, view, choose, open }) {
  const { columns } = page;
  if (!columns.length) return html`<${Section} id="samples" title="Samples"><p class="soft">No sample was evaluated yet.</p><//>`;
  const pick = (name, label) => html`<label>${label}
    <select id=${`pick-${name}`} value=${view[name]} onChange=${(event) => choose({ [name]: Number(event.target.value) })}>
      ${columns.map((column, i) => html`<option value=${i} selected=${i === view[name]}>${columnName(column)}</option>`)}
    </select>
  </label>`;
  return html`<${Section} id="samples" title="Samples"
    lead="Every sample under every version. A cell leads to its transcript; repeated attempts stand side by side in it.">
    <div class="fields pair">${pick("before", "Compare")}${pick("after", "with")}</div>
    <${Pair} page=${page} before=${columns[view.before]} after=${columns[view.after]} />
    <${Matrix} page=${page} view=${view} choose=${choose} open=${open} />
  <//>`;
}

function Pair({ page, before, after }) {
  const rows = useMemo(() => compared(page, before, after), [page, before, after]);
  const texts = [before, after].map((column) => {
    const version = page.versions.find((each) => each.hash === column.hash);
    return version ? version.text : null;
  });
  if (before === after) return html`<p class="soft">Choose two different versions to compare them.</p>`;
  return html`<div class="pairs">
    ${rows.map(
      (row) => html`<div class="split">
        <p><b>${row.split}</b> <span class="soft">${plural(row.n, "sample")} with both</span></p>
        <p class="mid">${percent(row.before)} → ${percent(row.after)}</p>
        <p class="soft small">${count(row.fixed)} fixed, ${count(row.broke)} broken</p>
      </div>`,
    )}
    ${rows.length ? null : html`<p class="soft">No sample was evaluated with both.</p>`}
  </div>
  <details class="table" id="textdiff">
    <summary>Difference of the two texts</summary>
    ${texts[0] === null || texts[1] === null
      ? html`<p class="soft">This page does not hold both texts; <code>skilltune diff</code> compares two versions.</p>`
      : html`<${Diff} before=${texts[0]} after=${texts[1]} label=${`From ${columnName(before)} to ${columnName(after)}`} />`}
  </details>`;
}

// -- edits

function Places({ page, places, all, word, column, open }) {
  if (!all) return null;
  return html`<p class="places"><b>${word} ${count(all)}</b>
    ${places.map((place) => html`<button type="button" class="link" onClick=${() => open(place, column)}>${page.samples.ids[place]}</button>`)}
    ${all > places.length ? html`<span class="soft">and ${count(all - places.length)} more</span>` : null}
  </p>`;
}

const FATES = { kept: "good", "tried, not kept": "", "not applied": "", "measured, not tried": "" };

function Edit({ edit }) {
  return html`<li class="edit">
    <p><span class=${`badge ${FATES[edit.fate]}`}>${edit.fate}</span> <span class="soft">${edit.op}${edit.after ? html` after “${edit.after}”` : null}</span>
      ${edit.effect === null ? null : html`<span class="effect">${points(edit.effect)} ± ${(100 * edit.sd).toFixed(1)} <span class="soft">points on train</span></span>`}
    </p>
    ${edit.removed || edit.inserted ? html`<${Diff} before=${edit.removed} after=${edit.inserted} label="The edit" />` : null}
    ${edit.why ? html`<p>${edit.why}</p>` : null}
    ${edit.reason ? html`<p class="soft">Verdict: ${edit.reason}</p>` : null}
    ${edit.quotes.length
      ? html`<details><summary>${plural(edit.quotes.length, "quote")} as evidence</summary>
          <ul class="plain">${edit.quotes.map(([sample, quote]) => html`<li><q>${quote}</q> <span class="soft">${sample}</span></li>`)}</ul></details>`
      : null}
  </li>`;
}

const KIND = { step: (v) => `Step ${v.step}`, slow: (v) => `Slow update after step ${v.step}`, compact: () => "Compaction", ablation: () => "Last ablation" };

function VerdictCard({ page, verdict, place, open }) {
  const column = Math.max(0, page.columns.findIndex((each) => each.verdict === place));
  const edits = verdict.edits.filter((edit) => edit.fate !== "measured, not tried");
  const rest = verdict.edits.filter((edit) => edit.fate === "measured, not tried");
  return html`<article class=${verdict.accepted ? "verdict kept" : "verdict"} id=${`verdict-${place}`}>
    <header>
      <h3>${KIND[verdict.kind](verdict)} <span class=${`badge ${verdict.accepted ? "good" : ""}`}>${verdict.accepted ? `accepted as v${verdict.version}` : "rejected"}</span></h3>
      ${verdict.gain === null ? null : html`<p class="effect">${points(verdict.gain)}${verdict.sd === null ? null : html` ± ${(100 * verdict.sd).toFixed(1)}`}<span class="soft"> points</span></p>`}
    </header>
    <div class="why">
      <p>${verdict.reason}</p>
      <${RaceChart} looks=${verdict.looks} label=${`Estimated gain after each of ${verdict.looks.length} interim analyses`} />
    </div>
    <${Places} page=${page} places=${verdict.fixed} all=${verdict.n_fixed} word="Fixed" column=${column} open=${open} />
    <${Places} page=${page} places=${verdict.broke} all=${verdict.n_broke} word="Broke" column=${column} open=${open} />
    ${edits.length ? html`<ul class="edits">${edits.map((edit) => html`<${Edit} edit=${edit} />`)}</ul>` : null}
    ${rest.length
      ? html`<details><summary>${plural(rest.length, "edit")} measured and not tried</summary>
          <ul class="edits">${rest.map((edit) => html`<${Edit} edit=${edit} />`)}</ul></details>`
      : null}
  </article>`;
}

function Rules({ rules }) {
  if (!rules.length) return null;
  const reach = Math.max(...rules.flatMap((rule) => [Math.abs(rule.low), Math.abs(rule.high)]), 0.05) * 1.05;
  return html`<h3>What each rule of the shipped skill adds</h3>
    <ul class="rules">
      ${rules.map(
        (rule) => html`<li>
          <p class="text">${rule.op === "delete" ? html`<del>${rule.text}</del>` : rule.text}
            <small class="soft">since v${rule.version}${rule.known ? ` · fixed ${rule.fixed}, broke ${rule.broken} of ${rule.known} train samples` : ""}${rule.together > 1 ? ` · not separable: ${rule.together} rules together` : ""}</small></p>
          <${Interval} mid=${rule.effect} low=${rule.low} high=${rule.high} reach=${reach} label=${`${points(rule.effect)} points, 95 % ${range(rule.low, rule.high)}`} />
          <p class="effect">${points(rule.effect)}<small class="soft">${range(rule.low, rule.high, 0)}</small></p>
        </li>`,
      )}
    </ul>`;
}

export function EditsSection({ page, open }) {
  const [all, setAll] = useState(false);
  const verdicts = page.verdicts.map((verdict, place) => [verdict, place]);
  const shown = all ? verdicts : verdicts.slice(-12);
  return html`<${Section} id="edits" title="Edits"
    lead="The screen measures each edit on train; those that look good are raced together on select, so what they fixed and broke there they did together.">
    ${page.verdicts.length ? null : html`<p class="soft">No edit was judged yet.</p>`}
    <${Rules} rules=${page.rules} />
    ${page.verdicts.length && page.rules.length ? html`<h3>Every verdict</h3>` : null}
    ${shown.length < verdicts.length ? html`<button type="button" class="quiet" onClick=${() => setAll(true)}>Show ${plural(verdicts.length - shown.length, "earlier verdict")}</button>` : null}
    ${shown.map(([verdict, place]) => html`<${VerdictCard} key=${place} page=${page} verdict=${verdict} place=${place} open=${open} />`)}
  <//>`;
}

// -- activation, controls

export function ActivationSection({ page }) {
  if (!page.activation.length) return null;
  return html`<${Section} id="activation" title="Activation" lead="An agent decides by itself if it loads a skill that it is offered.">
    <ul class="meters">
      ${page.activation.map((row) => {
        const share = row.rollouts ? row.loaded / row.rollouts : 0;
        return html`<li><p><b>${modelName(row.agent)}</b> <span class="soft">${plural(row.rollouts, "rollout")}</span></p>
          ${row.unproven
            ? html`<p class="soft">Unproven: the agent has a login of its own, so nobody saw if it was given the skill.</p>`
            : html`<${Bar} most=${row.rollouts} parts=${[{ value: row.loaded, kind: "done" }, { value: row.offered - row.loaded, kind: "more" }]}
                  label=${`loaded in ${row.loaded}, offered in ${row.offered} of ${row.rollouts}`} />
                <p class="soft small">loaded in ${count(row.loaded)} (${percent(share, 0)}), offered in ${count(row.offered)}</p>`}
        </li>`;
      })}
    </ul>
  <//>`;
}

export function ControlsSection({ page }) {
  const arms = (page.controls && page.controls.arms) || [];
  if (!arms.length) return null;
  const reach = Math.max(...arms.flatMap((arm) => [Math.abs(arm.difference_low), Math.abs(arm.difference_high)]), 0.05) * 1.05;
  return html`<${Section} id="controls" title="Control arms" lead="The trained skill against cheaper ways to the same end, on the test split.">
    <ul class="rules">
      ${arms.map(
        (arm) => html`<li>
          <p class="text">${arm.name}<small class="soft">${percent(arm.score)} on ${plural(arm.n, "sample")} · ${plural(arm.cost.calls, "call")}</small></p>
          <${Interval} mid=${arm.difference} low=${arm.difference_low} high=${arm.difference_high} reach=${reach} label=${`${points(arm.difference)} points against the trained skill`} />
          <p class="effect">${points(arm.difference)}<small class="soft">${range(arm.difference_low, arm.difference_high, 0)}</small></p>
        </li>`,
      )}
    </ul>
  <//>`;
}

// -- spend

const UNITS = [
  ["usd", "dollars", money],
  ["calls", "calls", count],
  ["tokens", "tokens", amount],
  ["minutes", "minutes", (n) => duration(60 * n)],
];

function Limits({ page }) {
  const { total, budget, forecast, minutes } = page.money;
  const spent = { usd: total.usd, calls: total.calls, tokens: total.input + total.output, minutes };
  return html`<ul class="meters">
    ${UNITS.filter(([name]) => (spent[name] !== null && (spent[name] || budget[name])) || budget[name]).map(([name, label, show]) => {
      const now = spent[name] || 0;
      const later = forecast && forecast[name] !== undefined ? forecast[name] : null;
      const limit = budget[name] ?? null;
      const most = Math.max(now, later || 0, limit || 0) || 1;
      const parts = [{ value: now, kind: "done" }];
      if (later !== null && later > now) parts.push({ value: later - now, kind: "more" });
      const words = `${show(now)} ${name === "usd" || name === "minutes" ? "" : label} spent${later !== null && later > now ? `, about ${show(later)} at the end` : ""}${limit === null ? "" : `, limit ${show(limit)}`}`;
      return html`<li><p><b>${show(now)}</b> <span class="soft">${name === "usd" ? "spent" : name === "minutes" ? "of work" : label}</span></p>
        ${limit === null && parts.length === 1 ? null : html`<${Bar} most=${most} parts=${parts} label=${words} />`}
        <p class=${classes("small", limit !== null && later !== null && later > limit ? "bad" : "soft")}>${later !== null && later > now ? `about ${show(later)} at the end` : ""}${limit === null ? (later !== null && later > now ? "" : "no limit") : `${later !== null && later > now ? " · " : ""}limit ${show(limit)}`}</p>
      </li>`;
    })}
  </ul>`;
}

export function SpendSection({ page }) {
  const { rows, total } = page.money;
  const line = (row, tag) => html`<tr class=${tag}>
    <th scope="row">${row.role}</th><td>${row.phase}</td>
    <td class="num">${count(row.calls)}</td><td class="num">${amount(row.input)}</td><td class="num">${amount(row.cached)}</td>
    <td class="num">${amount(row.output)}</td><td class="num">${money(row.usd)}</td></tr>`;
  return html`<${Section} id="spend" title="Spend" lead="What was paid over all processes of the run. Replayed answers cost nothing.">
    <${Limits} page=${page} />
    <div class="scroll" tabindex="0" role="region" aria-label="Cost by role">
      <table>
        <thead><tr><th scope="col">role</th><th scope="col">phase</th>
          ${["calls", "input tokens", "of them cached", "output tokens", "dollars"].map((name) => html`<th scope="col" class="num">${name}</th>`)}</tr></thead>
        <tbody>${rows.map((row) => line(row, ""))}${line(total, "total")}</tbody>
      </table>
    </div>
  <//>`;
}

// -- log

function LogLine({ entry }) {
  return html`<li class=${entry.tone}><time datetime=${new Date(1000 * entry.at).toISOString()}>${time(entry.at)}</time><span>${entry.text || entry.line}</span></li>`;
}

export function LogSection({ page }) {
  const [all, setAll] = useState(false);
  const shown = all ? page.log : page.log.slice(-20);
  return html`<${Section} id="log" title="Log">
    ${shown.length < page.log.length ? html`<button type="button" class="quiet" onClick=${() => setAll(true)}>Show all ${count(page.log.length)} lines</button>` : null}
    ${page.log.length ? html`<ol class="log">${shown.map((entry) => html`<${LogLine} entry=${entry} />`)}</ol>` : html`<p class="soft">Nothing has happened yet.</p>`}
    ${page.omitted.length
      ? html`<h3>Left out of this page</h3><ul class="plain soft">${page.omitted.map((part) => html`<li>${count(part.n)} ${part.what}; ${part.where}</li>`)}</ul>`
      : null}
    ${Object.keys(page.samples.notes).length
      ? html`<h3>Samples without a score</h3><ul class="plain">${Object.entries(page.samples.notes).map(([sample, why]) => html`<li><b>${sample}</b> <span class="soft">${why}</span></li>`)}</ul>`
      : null}
  <//>`;
}
