// The parts of a query as chips: words, pictures of the user's, rows; each with a sign and a weight.

import { $, el } from "./dom.js";
import { image } from "./api.js";

const UPLOAD_SIDE = 256;

/** The chips. `change(parts, {replace})` is called with the new list, `edit(text)` to put words back into the box. */
export function render(parts, change, edit) {
  $("chips").replaceChildren(...parts.map((part, at) => chip(part, (changed, options) => {
    const next = [...parts];
    if (changed) next[at] = changed;
    else next.splice(at, 1);
    change(next, options);
  }, () => {
    change(parts.filter((_, other) => other !== at));
    edit(part.value);
  })));
}

/** What a chip says, for people who do not see it. */
const label = (part) => ({ text: `“${part.value}”`, image: "your picture", uid: `row ${part.value.slice(0, 8)}` })[part.kind];

function chip(part, change, edit) {
  const negative = part.weight < 0;
  const face = {
    text: () => el("button", { type: "button", className: "face words", title: "Edit these words", onclick: edit }, part.value),
    image: () => el("span", { className: "face" }, el("img", { src: `data:image/jpeg;base64,${part.value}`, alt: "Your picture" }), "your picture"),
    uid: () => el("span", { className: "face" }, el("img", { src: image(part.value, 96), alt: "" }), "like this"),
  }[part.kind]();
  const weight = (value) => Math.round(value * 10) / 10;
  const said = el("output", {}, Math.abs(part.weight).toFixed(1));
  return el("li", { className: negative ? "chip minus" : "chip" },
    el("button", { type: "button", className: "sign", "aria-pressed": String(negative), "aria-label": `Subtract ${label(part)}`,
                   title: negative ? "Subtracted: click to add" : "Added: click to subtract",
                   onclick: () => change({ ...part, weight: -part.weight }) }, negative ? "−" : "+"),
    face,
    el("input", { type: "range", min: "0.1", max: "2", step: "0.1", value: String(Math.abs(part.weight)), "aria-label": `Weight of ${label(part)}`,
                  oninput: (event) => { said.textContent = Number(event.target.value).toFixed(1); },
                  onchange: (event) => change({ ...part, weight: weight(Math.sign(part.weight || 1) * event.target.value) }, { replace: true }) }),
    said,
    el("button", { type: "button", className: "remove", "aria-label": `Remove ${label(part)}`, onclick: () => change(null) }, "×"));
}

/** A picture file as a part, shrunk here so that it fits into the address and its metadata stay at home. */
export async function picture(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, UPLOAD_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return { kind: "image", value: canvas.toDataURL("image/jpeg", 0.85).split(",")[1], weight: 1 };
}
