// One row in full: its picture, every measurement, the verdict of every keep, and which one decided.

import { $, address, el, shown } from "./dom.js";
import { image, sample } from "./api.js";

const SAYS = { yes: "passes", no: "fails", unknown: "unknown" };
const HASH = /^[0-9a-f]{32,}$/;
let shows = "";

/** Open the drawer on a row. `act` has byPicture, byCaption, add, subtract, open and close. */
export async function open(uid, act) {
  if (shows === uid) return;
  shows = uid;
  const drawer = $("drawer");
  drawer.replaceChildren(head("…"), el("p", { className: "pad" }, "Loading"));
  if (!drawer.open) drawer.showModal();
  try {
    const found = await sample(uid);
    if (shows === uid) drawer.replaceChildren(...contents(found, act));
  } catch (error) {
    if (shows === uid) drawer.replaceChildren(head("No such row"), el("p", { className: "pad" }, error.message));
  }
}

export function close() {
  shows = "";
  if ($("drawer").open) $("drawer").close();
}

const head = (title) => el("form", { method: "dialog", className: "drawer-head" },
  el("h2", { id: "drawer-title" }, title), el("button", { className: "quiet", "aria-label": "Close" }, "×"));

function contents(row, act) {
  const result = { uid: row.uid, caption: row.caption };
  const button = (text, what) => el("button", { type: "button", className: "quiet", onclick: () => what(result) }, text);
  return [
    head(row.state === "kept" ? "Kept" : `${row.state[0].toUpperCase()}${row.state.slice(1)}`),
    el("div", { className: "pad" },
      row.reason ? el("p", { className: "reason" }, "by ", el("code", {}, row.reason)) : null,
      el("img", { className: "large", src: image(row.uid, 768), alt: row.caption || "No caption", onload: atMostTwice }),
      el("p", { className: "full-caption" }, row.caption || "no caption"),
      row.url ? el("p", {}, address(row.url)) : null,
      el("div", { className: "actions" }, button("More like this", act.byPicture), button("Add", act.add), button("Subtract", act.subtract)),
      section("Verdicts", verdicts(row)),
      section("Near-duplicates", duplicates(row.duplicates ?? [], act)),
      section("Measurements", measurements(row))),
  ];
}

/** A small picture is shown at most at twice its size. */
const atMostTwice = ({ target }) => target.style.setProperty("--twice", `${2 * target.naturalHeight}px`);

const section = (title, content) => (content ? el("section", {}, el("h3", {}, title), content) : null);

function verdicts(row) {
  if (!row.verdicts?.length) return null;
  return el("ol", { className: "verdicts" }, ...row.verdicts.map(({ line, text, verdict }) => {
    const decided = row.reason === `line ${line}: ${text}`;
    return el("li", { className: `${verdict}${decided ? " decided" : ""}` }, el("span", { className: "says" }, SAYS[verdict] ?? verdict),
      el("code", {}, text), el("span", { className: "line" }, `line ${line}`), decided ? el("span", { className: "unseen" }, "this one dropped it") : null);
  }));
}

function duplicates(uids, act) {
  if (!uids.length) return null;
  return el("ul", { className: "duplicates" }, ...uids.slice(0, 40).map((uid) => el("li", {},
    el("button", { type: "button", "aria-label": "Details of this near-duplicate", onclick: () => act.open({ uid }) },
      el("img", { src: image(uid, 128), alt: "", loading: "lazy" })))));
}

function measurements(row) {
  const known = Object.entries(row.columns).filter(([name]) => !["caption", "url"].includes(name));
  if (!known.length) return null;
  return el("table", { className: "measurements" }, el("tbody", {}, ...known.map(([name, value]) => el("tr", {},
    el("th", { scope: "row" }, name),
    el("td", { className: typeof value === "number" ? "number" : HASH.test(value) ? "hash" : "" }, shown(value))))));
}
