// The server's messages. A refusal becomes an Error with its line for people; one that says when to come back is asked again once.

const JSON_TYPE = { "content-type": "application/json" };

async function ask(path, options = {}, again = true) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  const wait = Number(answer.headers.get("retry-after"));
  if (again && wait && wait <= 5) {
    await new Promise((resolve) => setTimeout(resolve, wait * 1000));
    options.signal?.throwIfAborted();
    return ask(path, options, false);
  }
  const body = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(body.message || `the server says ${answer.status}`), { status: answer.status });
}

export const get = async (path) => (await ask(path)).json();

export const search = async (body, signal) =>
  (await ask("/v1/search", { method: "POST", headers: JSON_TYPE, body: JSON.stringify(body), signal })).json();

/** The found set as a file: its bytes, and how many rows it has. */
export async function exported(body) {
  const answer = await ask("/v1/export", { method: "POST", headers: JSON_TYPE, body: JSON.stringify(body) });
  return { rows: Number(answer.headers.get("x-rows")), blob: await answer.blob() };
}

export const sample = (uid) => get(`/v1/sample/${encodeURIComponent(uid)}`);

export const image = (uid, size) => `/v1/image/${encodeURIComponent(uid)}?size=${size}`;
