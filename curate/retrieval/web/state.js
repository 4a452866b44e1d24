// Everything the page shows, kept in the part of its address behind #: to share, to go back to, and never sent to any server.
//
//   t=1:a red car   i=0.5:<JPEG in base64>   u=-0.3:<uid>   f=width_px|>=|256   where=…  dropped  group=0  against=text
//   view=funnel     open=<uid>

const PART = { t: "text", i: "image", u: "uid" };
const KEY = Object.fromEntries(Object.entries(PART).map(([key, name]) => [name, key]));

export const EMPTY = { parts: [], filters: [], where: "", dropped: false, group: true, against: "image", view: "search", open: "" };

/** The state that an address says; what it does not say, or says wrongly, is as in EMPTY. */
export function read(hash) {
  const said = new URLSearchParams(hash.replace(/^#/, ""));
  const parts = [...said].filter(([key]) => Object.hasOwn(PART, key)).map(([key, value]) => part(PART[key], value)).filter(Boolean);
  return {
    parts: parts.slice(0, 16),
    filters: said.getAll("f").map(filter).filter(Boolean),
    where: said.get("where") || "",
    dropped: said.has("dropped"),
    group: said.get("group") !== "0",
    against: said.get("against") === "text" ? "text" : "image",
    view: said.get("view") || "search",
    open: said.get("open") || "",
  };
}

/** The address of a state, from # on. */
export function written(state) {
  const say = new URLSearchParams();
  for (const part of state.parts) say.append(KEY[part.kind], `${part.weight}:${part.value}`);
  for (const { column, op, value } of state.filters) say.append("f", `${column}|${op}|${value}`);
  if (state.where) say.set("where", state.where);
  if (state.dropped) say.set("dropped", "1");
  if (!state.group) say.set("group", "0");
  if (state.against !== "image") say.set("against", state.against);
  if (state.view !== "search") say.set("view", state.view);
  if (state.open) say.set("open", state.open);
  const text = say.toString();
  return text ? `#${text}` : "";
}

/** The search that a state asks for. */
export function question(state, where) {
  const name = { text: "text", image: "image_b64", uid: "uid" };
  return {
    query: state.parts.map((part) => ({ [name[part.kind]]: part.value, weight: part.weight })),
    where, dropped: state.dropped, group: state.group, against: state.against,
  };
}

function part(kind, text) {
  const colon = text.indexOf(":");
  const weight = Number(text.slice(0, colon));
  const value = text.slice(colon + 1);
  const good = kind === "image" ? /^[A-Za-z0-9+/]+=*$/.test(value) : value !== "";
  return colon > 0 && Number.isFinite(weight) && Math.abs(weight) <= 10 && good ? { kind, value, weight } : null;
}

function filter(text) {
  const [column, op, ...value] = text.split("|");
  return column && op ? { column, op, value: value.join("|") } : null;
}
