// Small charts as SVG. Each has a label that says in words what it shows; the figures stand in a table beside it.
import { html } from "./preact.js";
import { percent, points } from "./format.js";

const round = (value) => Math.round(value * 10) / 10;

/** A gain with its interval on an axis that holds 0. All values are differences of scores. */
export function Interval({ mid, low, high, reach, label }) {
  const most = reach || Math.max(Math.abs(low), Math.abs(high), Math.abs(mid), 0.05) * 1.08;
  const x = (value) => round(50 + (50 * Math.max(-most, Math.min(most, value))) / most);
  return html`<svg class="interval" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label=${label}>
    <line class="axis" x1="0" x2="100" y1="5" y2="5" />
    <line class="zero" x1="50" x2="50" y1="0" y2="10" />
    <line class=${low > 0 ? "bar good" : high < 0 ? "bar bad" : "bar"} x1=${x(low)} x2=${x(high)} y1="5" y2="5" />
    <line class=${low > 0 ? "mid good" : high < 0 ? "mid bad" : "mid"} x1=${x(mid)} x2=${x(mid)} y1="1.2" y2="8.8" />
  </svg>`;
}

/** The common range of some scores, in steps of ten points and at least forty points wide. */
export function scoreRange(values) {
  if (!values.length) return [0, 1];
  let low = Math.max(0, Math.floor(10 * Math.min(...values) - 0.2) / 10);
  let high = Math.min(1, Math.ceil(10 * Math.max(...values) + 0.2) / 10);
  while (high - low < 0.399) {
    low = Math.max(0, low - 0.1);
    if (high - low < 0.399) high = Math.min(1, high + 0.1);
  }
  return [low, high];
}

const WIDTH = 340;
const HEIGHT = 210;
const MARGIN = { left: 40, right: 12, top: 14, bottom: 30 };

/** Scores by version: `marks` are {x, mid, low, high, ships}, `names` the labels of the axis, `range` [low, high]. */
export function ScoreChart({ marks, names, range, label }) {
  const [low, high] = range;
  const step = (WIDTH - MARGIN.left - MARGIN.right) / Math.max(1, names.length);
  const x = (place) => round(MARGIN.left + (place + 0.5) * step);
  const y = (score) => round(MARGIN.top + ((high - score) * (HEIGHT - MARGIN.top - MARGIN.bottom)) / (high - low));
  const ticks = [];
  for (let tick = low; tick <= high + 1e-9; tick += (high - low) / 4) ticks.push(tick);
  const every = Math.ceil(names.length / 8);
  const path = marks.map((mark, i) => `${i ? "L" : "M"}${x(mark.x)} ${y(mark.mid)}`).join("");
  return html`<svg class="scores" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${label}>
    ${ticks.map(
      (tick) => html`<line class="rule" x1=${MARGIN.left} x2=${WIDTH - MARGIN.right} y1=${y(tick)} y2=${y(tick)} />
        <text class="end" x=${MARGIN.left - 8} y=${y(tick) + 4}>${Math.round(100 * tick)}</text>`,
    )}
    ${names.map((name, i) => (i % every && i !== names.length - 1) || (i === names.length - 1 && i % every && i % every < every / 2)
      ? null
      : html`<text class="middle" x=${x(i)} y=${HEIGHT - 8}>${name}</text>`)}
    <path class="line" d=${path} />
    ${marks.map(
      (mark) => html`<g class=${mark.ships ? "mark ships" : "mark"}>
        <title>${`${names[mark.x]}: ${percent(mark.mid)} (${percent(mark.low, 0)} to ${percent(mark.high, 0)}), ${mark.n} samples`}</title>
        <line x1=${x(mark.x)} x2=${x(mark.x)} y1=${y(Math.min(high, mark.high))} y2=${y(Math.max(low, mark.low))} />
        <circle cx=${x(mark.x)} cy=${y(mark.mid)} r=${mark.ships ? 5.5 : 4} />
      </g>`,
    )}
  </svg>`;
}

/** A curve of a few values, for a row of a list. */
export function Sparkline({ values, label }) {
  if (values.length < 2) return html`<span class="soft">–</span>`;
  const low = Math.min(...values);
  const span = Math.max(0.05, Math.max(...values) - low);
  const at = (value, i) => [round(2 + (96 * i) / (values.length - 1)), round(22 - (18 * (value - low)) / span)];
  const [endX, endY] = at(values[values.length - 1], values.length - 1);
  return html`<svg class="spark" viewBox="0 0 100 26" role="img" aria-label=${label}>
    <path d=${values.map((value, i) => `${i ? "L" : "M"}${at(value, i).join(" ")}`).join("")} />
    <circle cx=${endX} cy=${endY} r="2.2" />
  </svg>`;
}

/** The posterior of a gain as a bell curve; the part above 0 is filled. */
export function Posterior({ gain, sd, label }) {
  const most = Math.max(Math.abs(gain) + 3 * sd, 0.05);
  const x = (value) => round(100 + (100 * value) / most);
  const height = (value) => round(52 - 46 * Math.exp(-0.5 * ((value - gain) / sd) ** 2));
  const curve = (from, to) => {
    const found = [];
    for (let i = 0; i <= 80; i++) {
      const value = from + ((to - from) * i) / 80;
      found.push(`${x(value)} ${height(value)}`);
    }
    return found.join("L");
  };
  return html`<svg class="posterior" viewBox="0 0 200 68" role="img" aria-label=${label}>
    <path class="above" d=${`M${x(0)} 52L${curve(0, most)}L200 52Z`} />
    <path class="curve" d=${`M${curve(-most, most)}`} />
    <line class="axis" x1="0" x2="200" y1="52" y2="52" />
    <line class="zero" x1="100" x2="100" y1="2" y2="56" />
    <text class="middle" x="100" y="66">0</text>
    <text x="0" y="66">${points(-most, 0)}</text>
    <text class="end" x="200" y="66">${points(most, 0)} points</text>
  </svg>`;
}

/** The estimates of a race after each interim analysis, as a band around a line. */
export function RaceChart({ looks, label }) {
  const known = looks.filter((look) => look.sd !== null);
  if (known.length < 2) return null;
  const ends = known.flatMap((look) => [look.gain - 1.96 * look.sd, look.gain + 1.96 * look.sd, 0]);
  const low = Math.min(...ends);
  const high = Math.max(...ends);
  const x = (look) => round(4 + (192 * (look.n - known[0].n)) / Math.max(1, known[known.length - 1].n - known[0].n));
  const y = (value) => round(4 + (44 * (high - value)) / Math.max(1e-6, high - low));
  const band = [
    ...known.map((look) => `${x(look)} ${y(look.gain + 1.96 * look.sd)}`),
    ...[...known].reverse().map((look) => `${x(look)} ${y(look.gain - 1.96 * look.sd)}`),
  ];
  return html`<svg class="race" viewBox="0 0 200 52" role="img" aria-label=${label}>
    <path class="band" d=${`M${band.join("L")}Z`} />
    <line class="zero" x1="0" x2="200" y1=${y(0)} y2=${y(0)} />
    <path class="curve" d=${known.map((look, i) => `${i ? "L" : "M"}${x(look)} ${y(look.gain)}`).join("")} />
  </svg>`;
}

/** A share of a whole, with marks: `parts` are {value, kind}, `most` the whole. */
export function Bar({ parts, most, label }) {
  return html`<div class="bar" role="img" aria-label=${label}>
    ${parts.map(({ value, kind }) => html`<i class=${kind} style=${{ width: `${Math.min(100, (100 * value) / most)}%` }}></i>`)}
  </div>`;
}
