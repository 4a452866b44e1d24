// The page: what its address says is what it shows. Every action makes a new address; nothing else holds state.

import { $, el, number } from "./dom.js";
import * as api from "./api.js";
import * as drawer from "./drawer.js";
import * as filters from "./filters.js";
import * as grid from "./grid.js";
import * as query from "./query.js";
import { EMPTY, question, read, written } from "./state.js";
import { VIEWS, show } from "./tables.js";

const PAGE = 40;
const LEFT_OUT = { where: "by the filter", dropped: "dropped by the run", same_picture: "as near-duplicates", policy: "by the policy" };
const REMEMBERED = 20;

let info = { columns: {} };
let state = EMPTY;
let asked = "";                  // the question whose answer is shown
let found = null;                // its pages: {results, last}
let running = null;              // the search under way
const before = new Map();        // question → its pages and where they were scrolled to: what the back button finds

/** Go to the state with these changes. */
function go(change, { replace = false } = {}) {
  const next = { ...state, ...change };
  const address = location.pathname + written(next);
  if (address === location.pathname + written(state)) return;
  keepScroll();
  history[replace ? "replaceState" : "pushState"](null, "", address);
  render();
}

function render() {
  state = read(location.hash);
  const isSearch = !Object.hasOwn(VIEWS, state.view);
  $("search-view").hidden = !isSearch;
  $("table-view").hidden = isSearch;
  for (const tab of $("tabs").children) {
    if (tab.dataset.view === (isSearch ? "search" : state.view)) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (isSearch) renderSearch();
  else renderTable(state.view);
  if (state.open) drawer.open(state.open, act);
  else drawer.close();
}

function renderSearch() {
  query.render(state.parts, (parts, options) => go({ parts }, options), (text) => { $("words").value = text; $("words").focus(); });
  filters.render(state, info.columns, (list) => go({ filters: list }));
  for (const name of ["dropped", "group"]) $(name).checked = state[name];
  $("against").value = state.against;
  if (document.activeElement !== $("where")) $("where").value = state.where;
  const active = state.filters.length + (state.where ? 1 : 0);
  $("filter-toggle").textContent = active ? `Filter (${active})` : "Filter";
  document.title = [titled(), info.run].filter(Boolean).join(" · ") || "curate";
  const wanted = JSON.stringify(body());
  if (wanted !== asked) load(wanted);
}

const titled = () => state.parts.map((p) => (p.weight < 0 ? "− " : "") + (p.kind === "text" ? p.value : "picture")).join(" ").slice(0, 60);
const body = () => question(state, filters.expression(state, info.columns));

async function renderTable(view) {
  document.title = `${VIEWS[view].title} · ${info.run}`;
  $("table-view").replaceChildren();
  try {
    show(view, await api.get(VIEWS[view].path));
  } catch (error) {
    $("table-view").replaceChildren(el("p", { className: "problem" }, error.message));
  }
}

/** Show the answer to a question: from memory where it was asked before. */
async function load(wanted) {
  asked = wanted;
  running?.abort();
  const known = before.get(wanted);
  if (known) {
    running = null;
    found = known;
    grid.render(known.results, act, false);
    report();
    scrollTo(0, known.scroll);
    return;
  }
  found = { results: [], last: null, scroll: 0 };
  await next(false);
}

/** Ask for the next page of what is shown. */
async function next(append) {
  const mine = (running = new AbortController());
  const pages = found;
  $("search-view").setAttribute("aria-busy", "true");
  try {
    const page = await api.search({ ...JSON.parse(asked), k: PAGE, after: append ? pages.last.after : "" }, mine.signal);
    pages.results.push(...page.results);
    pages.last = page;
    remember(asked, pages);
    grid.render(page.results, act, append);
    if (!append) scrollTo(0, 0);
    report();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!append) grid.render([], act, false);
    report(error.message);
  } finally {
    if (running === mine) {
      running = null;
      $("search-view").removeAttribute("aria-busy");
      if (append || !$("problem").textContent) watch();
    }
  }
}

function remember(key, pages) {
  before.delete(key);
  before.set(key, pages);
  if (before.size > REMEMBERED) before.delete(before.keys().next().value);
}

const keepScroll = () => { if (found && !$("search-view").hidden) found.scroll = scrollY; };

/** How many there are, and what was left out and why. */
function report(problem = "") {
  $("problem").hidden = !problem;
  $("problem").textContent = problem;
  const last = found?.last;
  $("more").hidden = !last || last.exhausted || Boolean(problem);
  if (problem || !last) {
    $("counts").replaceChildren();
    return;
  }
  const left = Object.entries(last.left_out).filter(([, rows]) => rows);
  const time = Object.values(last.timings_ms).reduce((sum, ms) => sum + ms, 0);
  const shown = found.results.length;
  $("counts").replaceChildren(
    el("strong", {}, shown ? `${number(shown)}${last.exhausted ? "" : "+"}` : "Nothing"), ` found of ${number(last.searched)} searched`,
    ...(left.length ? [" · left out: ", left.map(([why, rows]) => `${number(rows)} ${LEFT_OUT[why] ?? why}`).join(", ")] : []),
    el("span", { className: "time" }, ` · ${time.toFixed(time < 10 ? 1 : 0)} ms`));
}

// What can be done with a row, from a tile or the drawer. Each starts anew but add and subtract.

const part = (result, weight = 1) => ({ kind: "uid", value: result.uid, weight });
const act = {
  byPicture: (result) => start([part(result)]),
  byCaption: (result) => start([{ kind: "text", value: result.caption.slice(0, 1000), weight: 1 }]),
  add: (result) => start([...state.parts, part(result)]),
  subtract: (result) => start([...state.parts, part(result, -1)]),
  open: (result) => go({ open: result.uid }, { replace: Boolean(state.open) }),
};

function start(parts) {
  $("words").value = "";
  go({ parts: parts.slice(-16), open: "", view: "search" });
}

const typed = () => $("words").value.trim();
const words = () => ({ kind: "text", value: typed(), weight: 1 });

async function upload(file) {
  if (!file) return;
  try {
    start([await query.picture(file)]);
  } catch {
    report("that is no picture this browser can read");
  }
}

async function save(format) {
  try {
    const { rows, blob } = await api.exported({ ...JSON.parse(asked), format });
    const link = el("a", { href: URL.createObjectURL(blob), download: `found.${format}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    $("counts").replaceChildren(el("strong", {}, number(rows)), ` uids saved · `, el("code", {}, `curate shard RUN --uids found.${format} --out shards`));
  } catch (error) {
    report(error.message);
  }
}

/** More as the end comes into sight. */
const ahead = new IntersectionObserver((entries) => { if (entries.some((e) => e.isIntersecting)) more(); }, { rootMargin: "600px" });
const watch = () => { ahead.unobserve($("more")); ahead.observe($("more")); };
const more = () => { if (!running && found?.last && !found.last.exhausted && $("problem").hidden) next(true); };

function listen() {
  $("search").addEventListener("submit", (event) => { event.preventDefault(); if (typed()) start([words()]); else grid.first() && grid.focus(grid.first()); });
  $("add").addEventListener("click", () => (typed() ? start([...state.parts, words()]) : $("words").focus()));
  $("pick").addEventListener("click", () => $("upload").click());
  $("upload").addEventListener("change", (event) => { upload(event.target.files[0]); event.target.value = ""; });
  for (const name of ["dropped", "group"]) $(name).addEventListener("change", (event) => go({ [name]: event.target.checked }));
  $("against").addEventListener("change", (event) => go({ against: event.target.value }));
  $("where").addEventListener("change", (event) => go({ where: event.target.value.trim() }));
  $("filter-toggle").addEventListener("click", () => toggleFilters());
  $("filter-add").addEventListener("click", () => {
    go({ filters: [...state.filters, filters.fresh(info.columns)] });
    $("filter-rows").lastElementChild?.querySelector("select").focus();
  });
  for (const format of ["npy", "parquet"]) $(`export-${format}`).addEventListener("click", () => save(format));
  $("more").addEventListener("click", more);
  $("home").addEventListener("click", (event) => { event.preventDefault(); $("words").value = ""; go(EMPTY); });
  $("drawer").addEventListener("close", () => { if (state.open) go({ open: "" }); });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  $("skip").addEventListener("click", (event) => { event.preventDefault(); if (grid.first()) grid.focus(grid.first()); });
  $("help-open").addEventListener("click", () => $("help").showModal());
  addEventListener("popstate", () => render());
  addEventListener("scroll", keepScroll, { passive: true });
  addEventListener("keydown", keys);
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => { event.preventDefault(); document.body.classList.remove("dropping"); upload(event.dataTransfer.files[0]); });
  addEventListener("paste", (event) => upload([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
}

function toggleFilters(shown = $("filters").hidden) {
  $("filters").hidden = !shown;
  $("filter-toggle").setAttribute("aria-expanded", String(shown));
}

function keys(event) {
  if (document.querySelector("dialog[open]")) return;
  const writes = event.target.matches("input:not([type=checkbox], [type=range]), select, textarea");
  if (event.key === "Escape") $("words").focus();
  else if (event.target === $("words") && event.key === "ArrowDown" && grid.first()) { event.preventDefault(); grid.focus(grid.first()); }
  else if (event.target === $("words") && event.key === "Enter" && event.shiftKey) { event.preventDefault(); $("add").click(); }
  else if (writes || event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key === "/") { event.preventDefault(); $("words").select(); $("words").focus(); }
  else if (event.key === "?") $("help").showModal();
}

function describe() {
  $("run").textContent = info.run;
  $("facts").textContent = [`${number(info.rows)} rows`, `${number(info.kept)} kept`, info.model, info.policy && `policy: ${info.policy}`].filter(Boolean).join(" · ");
  $("index-id").textContent = `index ${String(info.index_id).slice(0, 12)}`;
  $("against-label").hidden = !info.has_text;
  $("export-label").title = "The uids of everything found";
}

/** The tabs that this run has something for. */
function tabs() {
  const names = [["search", "Search"], ...info.records.filter((view) => Object.hasOwn(VIEWS, view)).map((view) => [view, VIEWS[view].title])];
  $("tabs").replaceChildren(...names.map(([view, title]) => el("a", { href: written({ ...EMPTY, view }) || "#", "data-view": view,
    onclick: (event) => { event.preventDefault(); go({ view, open: "" }); } }, title)));
}

history.scrollRestoration = "manual";
listen();
try {
  info = await api.get("/v1/info");
  describe();
  tabs();
  toggleFilters(read(location.hash).filters.length + read(location.hash).where.length > 0);
  render();
} catch (error) {
  report(error.message);
}
