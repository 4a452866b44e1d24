// Elements from plain values. Text from the data set only ever becomes text: nothing here parses HTML.

export const $ = (id) => document.getElementById(id);

/** An element: `props` are properties, `on…` listeners, `aria-…`/`data-…`/`role` attributes; children are nodes or text. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for" || name === "list") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== "").map(String_));
  return node;
}

const String_ = (child) => (child instanceof Node ? child : String(child));

export const number = (value) => Number(value).toLocaleString("en");

/** A measurement for people: long fractions cut, nothing where there is none. */
export function shown(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(5)));
  if (typeof value === "object") return JSON.stringify(value);
  return String(value);
}

/** A link where the address is one of the web's, else its text alone. */
export function address(url) {
  if (!/^https?:\/\//i.test(url)) return el("span", { className: "url" }, url);
  return el("a", { className: "url", href: url, rel: "noopener noreferrer nofollow", target: "_blank" }, url);
}
