// Conditions built from columns, and the expression that they and the free text make: the same language as a keep.

import { $, el } from "./dom.js";

const OPS = {
  number: [">=", "<=", "=", "!=", ">", "<"],
  text: ["=", "!=", "contains", "like"],
  boolean: ["is true", "is false"],
  "list of text": ["contains"],
  "list of number": ["contains"],
};
const PLAIN = /^[a-z_][a-z0-9_]*$/;
const RESERVED = new Set("all and any array as asc between both case cast check collate column constraint create default desc distinct do else end except exists false fetch for foreign from glob grant group having if ilike in initially intersect into is lateral leading like limit not null offset on only or order primary qualify references returning select similar some symmetric table then to trailing true union unique using variadic when where window with".split(" "));

const text = (value) => `'${value.replaceAll("'", "''")}'`;
const name = (column) => (PLAIN.test(column) && !RESERVED.has(column) ? column : `"${column.replaceAll('"', '""')}"`);

/** One condition as an expression; empty while it is not complete. */
export function clause({ column, op, value }, columns) {
  const kind = columns[column]?.kind;
  if (!kind) return "";
  if (kind === "boolean") return op === "is false" ? `not ${name(column)}` : name(column);
  const isNumber = kind.endsWith("number");
  if (value === "" || (isNumber && !Number.isFinite(Number(value)))) return "";
  const constant = isNumber ? value.trim() : text(value);
  return op === "contains" ? `contains(${name(column)}, ${constant})` : `${name(column)} ${op} ${constant}`;
}

/** The whole expression: every condition, and the free text in brackets where it must have them. */
export function expression(state, columns) {
  const clauses = state.filters.map((filter) => clause(filter, columns)).filter(Boolean);
  const free = state.where.trim();
  if (free) clauses.push(clauses.length && /\bor\b/i.test(free) ? `(${free})` : free);
  return clauses.join(" and ");
}

/** A first condition on a column. */
export function fresh(columns) {
  const column = ["width_px", "clip_cos"].find((wanted) => wanted in columns) ?? usable(columns)[0];
  return { column, op: OPS[columns[column].kind][0], value: "" };
}

const usable = (columns) => Object.keys(columns).filter((column) => Object.hasOwn(OPS, columns[column].kind));

/** The rows of the builder. `change(filters)` is called with the new list. */
export function render(state, columns, change) {
  const rows = state.filters.map((filter, at) => row(filter, columns, (changed) => {
    const next = [...state.filters];
    if (changed) next[at] = changed;
    else next.splice(at, 1);
    change(next);
  }));
  $("filter-rows").replaceChildren(...rows);
  const all = expression(state, columns);
  $("whole").replaceChildren(...(all && state.filters.length ? ["where ", el("code", {}, all)] : []));
}

function row(filter, columns, change) {
  const kind = columns[filter.column]?.kind;
  const ops = OPS[kind] ?? [filter.op];
  const choose = (values, chosen, label, onchange) => el("select", { "aria-label": label, onchange }, ...values.map((value) =>
    el("option", { value, selected: value === chosen }, value)));
  const column = choose(usable(columns), filter.column, "Column", (event) => {
    const to = event.target.value;
    const same = columns[to].kind === kind;
    change({ column: to, op: same ? filter.op : OPS[columns[to].kind][0], value: same ? filter.value : "" });
  });
  const op = choose(ops, filter.op, "Comparison", (event) => change({ ...filter, op: event.target.value }));
  const value = kind === "boolean" ? null : el("input", {
    value: filter.value, "aria-label": "Value", inputMode: kind?.endsWith("number") ? "decimal" : "text", autocomplete: "off",
    spellcheck: false, maxLength: 500, onchange: (event) => change({ ...filter, value: event.target.value }),
  });
  const remove = el("button", { type: "button", className: "quiet", "aria-label": "Remove this condition", onclick: () => change(null) }, "×");
  return el("div", { className: "filter-row" }, column, op, value, remove);
}
