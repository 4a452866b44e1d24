// What the run says about itself: the funnel, the rounds, the card.

import { $, el, number, shown } from "./dom.js";

const REASONS = ["dropped", "unknown", "quarantined", "removed"];

export const VIEWS = {
  funnel: { title: "Funnel", path: "/v1/funnel", render: funnel },
  rounds: { title: "Rounds", path: "/v1/rounds", render: rounds },
  card: { title: "Card", path: "/v1/card", render: card },
};

export function show(view, data) {
  $("table-view").replaceChildren(el("h1", {}, VIEWS[view].title), ...VIEWS[view].render(data));
}

function funnel(stages) {
  const all = Math.max(1, stages[0]?.in ?? 1);
  return [el("ol", { className: "funnel" }, ...stages.map((stage) => {
    const lost = stage.in - stage.kept;
    const bar = el("span", { className: "bar-fill" });
    bar.style.setProperty("--kept", `${(100 * stage.kept) / all}%`);
    bar.style.setProperty("--in", `${(100 * stage.in) / all}%`);
    const clauses = (stage.clauses?.length ? stage.clauses : [{ text: "", ...stage }]).filter((c) => REASONS.some((r) => c[r]));
    return el("li", { className: lost ? "" : "quiet-stage" },
      el("div", { className: "stage" }, el("span", { className: "what" }, stage.what),
        el("span", { className: "rows" }, number(stage.kept)), el("span", { className: "share" }, `${((100 * stage.kept) / all).toFixed(1)} %`)),
      bar,
      lost ? el("ul", { className: "reasons" }, ...clauses.map((c) => el("li", {},
        REASONS.filter((r) => c[r]).map((r) => `${number(c[r])} ${r}`).join(", "), c.text && c.text !== stage.what.replace(/^keep /, "") ? " by " : "",
        c.text && c.text !== stage.what.replace(/^keep /, "") ? el("code", {}, c.text) : null))) : null);
  }))];
}

function rounds(list) {
  const names = [...new Set(list.flatMap((round) => Object.keys(round.figures ?? {})))];
  const row = (head, cell) => el("tr", {}, el("th", { scope: "row" }, head), ...list.map((round) => el("td", { className: "number" }, cell(round))));
  return [el("div", { className: "scroll" }, el("table", { className: "rounds" },
    el("thead", {}, el("tr", {}, el("th", {}, ""), ...list.map((round) => el("th", { scope: "col" }, `round ${round.round}`,
      el("span", { className: round.promoted ? "mark yes" : "mark no" }, round.promoted ? "promoted" : "not promoted"))))),
    el("tbody", {}, row("rows", (round) => number(round.data?.rows ?? 0)),
      ...names.map((name) => row(name, (round) => shown(round.figures?.[name]))),
      row("weights", (round) => el("span", { className: "hash" }, String(round.weights_digest ?? round.weights ?? "").slice(0, 12))))))];
}

function card(data) {
  const plain = Object.entries(data).filter(([, value]) => typeof value !== "object");
  return [el("table", { className: "measurements" }, el("tbody", {}, ...plain.map(([name, value]) => el("tr", {},
    el("th", { scope: "row" }, name), el("td", {}, shown(value)))))),
    el("details", {}, el("summary", {}, "The whole card"), el("pre", {}, JSON.stringify(data, null, 1)))];
}
