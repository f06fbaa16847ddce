// Speaks to the endpoint: sends images, waits when asked to, and says in words what went wrong. Touches nothing on the page.

const MOST_TRIES = 8;
const LONGEST_WAIT_S = 60;

// An answer that is no success. `reason` is its short code, `results` has one entry per image where each was refused for itself.
export class Refused extends Error {
  constructor(detail, reason, results = []) {
    super(detail);
    this.reason = reason;
    this.results = results;
  }
}

export class Endpoint {
  #key = null; // in memory only: it is gone with the page
  #asking = null;
  #askForKey;
  #tellWait;

  // askForKey(wasWrong) resolves to a key, or to null where none is given. tellWait(seconds) is called before each wait.
  constructor(askForKey, tellWait) {
    this.#askForKey = askForKey;
    this.#tellWait = tellWait;
  }

  get holdsKey() {
    return this.#key !== null;
  }

  async model() {
    return (await this.#ask("v1/model")).json();
  }

  async drift() {
    return (await this.#ask("v1/model/drift")).json();
  }

  async document(path) {
    return (await this.#ask(path)).blob();
  }

  // Returns the answer to a list of files, in their order. Their names are not sent.
  async predict(files, explain, signal) {
    const form = new FormData();
    for (const file of files) form.append("images", file, "image");
    const path = explain ? "v1/predict?explain=true" : "v1/predict";
    return (await this.#ask(path, { method: "POST", body: form, signal })).json();
  }

  async #ask(path, options = {}) {
    for (let attempt = 1; ; ) {
      options.signal?.throwIfAborted();
      const used = this.#key;
      const response = await send(path, options, used);
      if (response.ok) return response;
      if (response.status === 401) {
        if (used === this.#key) await this.#newKey();
      } else if ([429, 503].includes(response.status) && attempt < MOST_TRIES) {
        await this.#wait(waitSeconds(response, attempt), options.signal);
        attempt += 1;
      } else {
        throw await refusedBy(response);
      }
    }
  }

  // One question at a time, whatever number of requests wait for its answer.
  async #newKey() {
    this.#asking ??= this.#askForKey(this.holdsKey).finally(() => { this.#asking = null; });
    const key = await this.#asking;
    if (key === null) throw new Refused("The endpoint asks for a key, and none was given. Choose the files again to enter one.", "no-key");
    this.#key = key;
  }

  async #wait(seconds, signal) {
    this.#tellWait(seconds);
    await new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, seconds * 1000);
      signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
    });
    this.#tellWait(0);
  }
}

async function send(path, options, key) {
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  try {
    return await fetch(path, { ...options, headers, credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The endpoint does not answer, or a file can no longer be read. Check that it runs, and try again.", "unreachable");
  }
}

// What the server asks, else 1, 2, 4, ... seconds; a minute at most.
function waitSeconds(response, attempt) {
  const asked = Number.parseInt(response.headers.get("Retry-After"), 10);
  return Math.min(Number.isNaN(asked) ? 2 ** (attempt - 1) : asked, LONGEST_WAIT_S);
}

// Reads problem JSON (RFC 9457); a proxy in between may answer otherwise.
async function refusedBy(response) {
  try {
    const problem = await response.json();
    if (typeof problem.detail === "string") return new Refused(problem.detail, problem.reason, problem.results);
  } catch {
    // Falls through to the status alone, which is all that such an answer says.
  }
  return new Refused(`The endpoint answered with status ${response.status} and no explanation.`, `status-${response.status}`);
}
