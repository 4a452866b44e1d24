// The results: tiles that are searched by, moved between with the arrows, and opened.

import { $, el } from "./dom.js";
import { image } from "./api.js";

/** A tile. `act` has byPicture, byCaption, add, subtract and open, each taking the result. */
function tile(result, act) {
  const caption = result.caption || "";
  const gone = result.state !== "kept";
  const picture = el("img", { src: image(result.uid, 256), alt: "", loading: "lazy", decoding: "async",
                              onerror: (event) => event.target.closest(".picture").classList.add("missing") });
  const size = result.width_px ? `${result.width_px}×${result.height_px}` : "";
  const node = el("li", { className: gone ? "tile gone" : "tile", "data-uid": result.uid },
    el("button", { type: "button", className: "picture", tabIndex: -1, "aria-label": `Search by this picture: ${caption || "no caption"}`,
                   title: "Search by this picture", onclick: () => act.byPicture(result) }, picture),
    result.group_size > 1 ? el("span", { className: "badge", title: `${result.group_size} near-duplicates, this one first` },
                               el("span", { className: "unseen" }, "near-duplicates: "), `×${result.group_size}`) : null,
    gone ? el("p", { className: "reason" }, el("strong", {}, result.state), ` ${result.reason || ""}`) : null,
    caption ? el("button", { type: "button", className: "caption", tabIndex: -1, title: "Search by this caption",
                             "aria-label": `Search by this caption: ${caption}`, onclick: () => act.byCaption(result) }, caption)
            : el("p", { className: "caption none" }, "no caption"),
    el("p", { className: "meta" },
      result.score ? el("span", { title: "Cosine to the query" }, result.score.toFixed(3)) : null, el("span", {}, size), el("span", { className: "grow" }),
      el("button", { type: "button", className: "link", tabIndex: -1, "aria-label": "Details", onclick: () => act.open(result) }, "details")));
  node.addEventListener("keydown", (event) => keys(event, result, act));
  return node;
}

function keys(event, result, act) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act_ = { i: act.open, c: result.caption && act.byCaption, "+": act.add, "=": act.add, "-": act.subtract }[event.key];
  if (act_) {
    event.preventDefault();
    act_(result);
  } else if (event.key.startsWith("Arrow")) {
    event.preventDefault();
    move(event.currentTarget, event.key);
  }
}

/** The focus from a tile to its neighbour; above the first row it goes to the search box. */
function move(from, key) {
  const tiles = [...$("results").children];
  const columns = tiles.filter((tile_) => tile_.offsetTop === tiles[0].offsetTop).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const to = tiles[tiles.indexOf(from) + step];
  if (to) focus(to);
  else if (key === "ArrowUp") $("words").focus();
}

/** Exactly one tile can be reached by Tab: the one that was last there. */
export function focus(tile_, quietly = false) {
  for (const other of $("results").querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
  for (const control of tile_.querySelectorAll("button")) control.tabIndex = 0;
  if (!quietly) {
    tile_.querySelector(".picture").focus();
    tile_.scrollIntoView({ block: "nearest" });
  }
}

export function first() {
  return $("results").firstElementChild;
}

/** Show these results, behind those that are there if `append`. */
export function render(results, act, append) {
  const tiles = results.map((result) => tile(result, act));
  if (append) $("results").append(...tiles);
  else $("results").replaceChildren(...tiles);
  if (!append && tiles.length) focus(tiles[0], true);
}
$("results").addEventListener("focusin", (event) => {
  const tile_ = event.target.closest(".tile");
  if (tile_ && !event.target.matches("[tabindex='0']")) focus(tile_, true);
});
