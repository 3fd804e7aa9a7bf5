// A run's page as the front end reads it: cells of the matrix, means, and the change between two columns.

export const SPLITS = ["test", "select", "train"];
export const ABOUT_SPLIT = {
  test: "read once, for the certificate",
  select: "decides what is kept",
  train: "the optimizer's evidence",
};

/** The states of a cell by its character; a digit is partial credit in tenths. */
export function stateOf(cell) {
  if (cell === "A") return "right";
  if (cell === "0") return "wrong";
  if (cell === "L") return "limit";
  if (cell === "X") return "infrastructure";
  return cell >= "1" && cell <= "9" ? "partial" : "not evaluated";
}

export const describeCell = (cell) => (stateOf(cell) === "partial" ? `partial credit, about ${cell}0 %` : stateOf(cell));

/** The score of a cell, null if it has none. A limit counts as wrong. */
function valueOf(cell) {
  if (cell === "A") return 1;
  if (cell === "L") return 0;
  return cell >= "0" && cell <= "9" ? Number(cell) / 10 : null;
}

/** The cells of a sample in a column, one for each attempt that was made; "." if it was not evaluated. */
export function cellsOf(column, place) {
  let cells = "";
  for (const attempt of column.cells) cells += attempt[place] || ".";
  return cells.replace(/\.+$/, "") || ".";
}

/** The mean score of a sample in a column, null if it has none. */
export function meanOf(column, place) {
  let sum = 0;
  let n = 0;
  for (const attempt of column.cells) {
    const value = valueOf(attempt[place] || ".");
    if (value !== null) {
      sum += value;
      n++;
    }
  }
  return n ? sum / n : null;
}

/** The split of every sample, by place. */
export function splitsOf(samples) {
  const found = [];
  for (const name of SPLITS) for (let i = 0; i < (samples.sizes[name] || 0); i++) found.push(name);
  return found;
}

export const keyOf = (column, place, attempt) => `${column.hash}-${place}-${attempt}`;

/** The place of a column by its hash; that of the input or of what ships for "" . */
export function columnAt(page, hash, fallback) {
  const place = page.columns.findIndex((column) => column.hash === hash);
  return place >= 0 ? place : fallback;
}

export function shippedColumn(page) {
  const ships = page.versions.find((version) => version.ships);
  return columnAt(page, ships ? ships.hash : "", Math.max(0, page.columns.filter((c) => c.kind === "version").length - 1));
}

export const FILTERS = [
  ["all", "All"],
  ["fixed", "Fixed"],
  ["broke", "Broke"],
  ["failing", "Still wrong"],
  ["limit", "Limit"],
  ["unscored", "No score"],
  ["unseen", "Not evaluated"],
];

/** The names of the filters that hold for a sample, between two columns. */
export function kindsOf(before, after, place) {
  const kinds = ["all"];
  const old = meanOf(before, place);
  const now = meanOf(after, place);
  if (old !== null && now !== null && now > old) kinds.push("fixed");
  if (old !== null && now !== null && now < old) kinds.push("broke");
  if (now !== null && now < 1) kinds.push("failing");
  const cells = cellsOf(before, place) + cellsOf(after, place);
  if (cells.includes("L")) kinds.push("limit");
  if (cells.includes("X")) kinds.push("unscored");
  if (old === null || now === null) kinds.push("unseen");
  return kinds;
}

/** Of two columns, by split: the samples that both have, their means, and how many were fixed and broken. */
export function compared(page, before, after) {
  const split = splitsOf(page.samples);
  const found = Object.fromEntries(SPLITS.map((name) => [name, { n: 0, before: 0, after: 0, fixed: 0, broke: 0 }]));
  split.forEach((name, place) => {
    const old = meanOf(before, place);
    const now = meanOf(after, place);
    if (old === null || now === null) return;
    const sums = found[name];
    sums.n++;
    sums.before += old;
    sums.after += now;
    if (now > old) sums.fixed++;
    if (now < old) sums.broke++;
  });
  return SPLITS.filter((name) => found[name].n).map((name) => {
    const { n, before: old, after: now, fixed, broke } = found[name];
    return { split: name, n, before: old / n, after: now / n, fixed, broke };
  });
}
