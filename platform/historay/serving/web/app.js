// The page: takes files, sends them in requests that the endpoint accepts, and keeps what was answered while it is open.

import { Endpoint, Refused } from "./endpoint.js";
import { drawBatch, drawDrift, drawFacts, drawPrediction, drawRefusal, drawTile, enlarge } from "./view.js";

const MOST_AT_ONCE = 32; // images a request, so that progress is seen even where the endpoint takes more
const PART_OVERHEAD = 512; // bytes of one multipart part around its image

const at = (id) => document.getElementById(id);
const endpoint = new Endpoint(askForKey, tellWait);
let tiles = []; // of this session, in memory only
let queue = Promise.resolve();
let limits = null;
let stop = null; // AbortController while images are being sent

// --- The model

async function readModel() {
  const model = await endpoint.model();
  limits = model.limits;
  drawFacts(at("model-facts"), model);
  at("model-state").textContent = "";
  at("model-links").hidden = false;
  const mib = (limits.max_image_bytes / 2 ** 20).toLocaleString("en", { maximumFractionDigits: 1 });
  await readDrift();
  at("choose-hint").textContent = `JPEG, PNG or TIFF, up to ${mib} MiB each`;
}

async function readDrift() {
  drawDrift(at("drift"), await endpoint.drift());
}

async function start() {
  try {
    await readModel();
  } catch (error) {
    at("model-state").textContent = inWords(error);
  }
}

// A link cannot carry the key: with one, the document is fetched and saved instead of opened.
async function openDocument(event) {
  if (!endpoint.holdsKey) return;
  event.preventDefault();
  const link = event.currentTarget;
  try {
    const url = URL.createObjectURL(await endpoint.document(link.getAttribute("href")));
    const save = Object.assign(document.createElement("a"), { href: url, download: link.dataset.saveAs });
    save.click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (error) {
    at("model-state").textContent = inWords(error);
  }
}

// --- Sending

function take(files) {
  if (files.length === 0) return;
  const batch = files.map(drawTile);
  for (const tile of batch) tile.element.querySelector(".stack").addEventListener("click", () => enlarge(tile, at("large")));
  tiles.push(...batch);
  const time = new Date().toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  at("batches").prepend(drawBatch(batch, `${time}, ${counted(batch.length, "tile")}`));
  at("session-tools").hidden = false;
  at("empty").hidden = true;
  summarise();
  queue = queue.then(() => send(batch, at("explain").checked));
}

async function send(batch, explain) {
  if (!tiles.includes(batch[0])) return; // forgotten before its turn came
  stop = new AbortController();
  progress(0, batch.length);
  try {
    if (limits === null) await readModel();
    let done = 0;
    for (const request of requestsOf(batch, explain)) {
      await answer(request, explain);
      done += request.length;
      progress(done, batch.length);
    }
    await readDrift();
  } catch (error) {
    for (const tile of batch.filter(isWaiting)) drawRefusal(tile, inWords(error), codeOf(error));
  }
  stop = null;
  at("progress").hidden = true;
  summarise();
}

// Splits tiles into requests within the endpoint's limits. A file that no request may hold is refused here and not sent.
function requestsOf(batch, explain) {
  const mostFiles = Math.min(explain ? limits.max_explained : MOST_AT_ONCE, limits.max_files);
  const requests = [];
  let bytes = Infinity;
  for (const tile of batch) {
    const { size } = tile.file;
    if (size > limits.max_image_bytes) {
      drawRefusal(tile, `${size} bytes; the endpoint takes at most ${limits.max_image_bytes} in one image`, "too-many-bytes");
      continue;
    }
    bytes += size + PART_OVERHEAD;
    if (bytes > limits.max_body_bytes || requests.at(-1).length === mostFiles) {
      requests.push([]);
      bytes = size + PART_OVERHEAD;
    }
    requests.at(-1).push(tile);
  }
  return requests;
}

// One request, whose failure spoils no other; only a stop, a missing key or a silent endpoint end them all.
async function answer(request, explain) {
  try {
    const found = await endpoint.predict(request.map((tile) => tile.file), explain, stop.signal);
    draw(request, found.results, found);
  } catch (error) {
    if (!(error instanceof Refused) || ["no-key", "unreachable"].includes(error.reason)) throw error;
    draw(request, error.results ?? []);
    for (const tile of request.filter(isWaiting)) drawRefusal(tile, error.message, error.reason);
  }
  summarise();
}

function draw(request, results, found) {
  for (const result of results) {
    const tile = request[result.index];
    if (result.error) drawRefusal(tile, result.error.detail, result.error.reason);
    else drawPrediction(tile, result, found);
  }
}

const isWaiting = (tile) => tile.state === "waiting";

// --- What is said

function inWords(error) {
  if (error.name === "AbortError") return "Stopped before it was answered.";
  if (error instanceof Refused) return error.message;
  console.error(error);
  return `This page itself failed: ${error.message}. Load it again.`;
}

function codeOf(error) {
  if (error.name === "AbortError") return "stopped";
  return error.reason ?? "page-failed";
}

function progress(done, total) {
  at("progress").hidden = false;
  Object.assign(at("progress-bar"), { max: total, value: done });
  at("progress-text").textContent = `${done} of ${counted(total, "tile")} answered`;
}

function tellWait(seconds) {
  at("waiting").textContent = seconds ? `The endpoint is busy or still loading. Trying again in ${seconds} s.` : "";
}

function summarise() {
  const labels = new Map();
  for (const { state, label } of tiles) if (state === "answered") labels.set(label, (labels.get(label) ?? 0) + 1);
  const parts = [...labels].map(([label, number]) => `${number} ${label}`);
  for (const [state, words] of [["abstains", "abstained"], ["refused", "not used"], ["waiting", "waiting"]]) {
    const number = tiles.filter((tile) => tile.state === state).length;
    if (number > 0) parts.push(`${number} ${words}`);
  }
  at("summary").textContent = tiles.length === 0 ? "No tile yet." : `${counted(tiles.length, "tile")}: ${parts.join(", ")}.`;
}

function counted(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}

function forget() {
  stop?.abort();
  for (const tile of tiles) URL.revokeObjectURL(tile.url);
  tiles = [];
  at("batches").replaceChildren();
  at("session-tools").hidden = true;
  at("empty").hidden = false;
  summarise();
  at("choose").focus();
}

// --- The key

function askForKey(wasWrong) {
  const dialog = at("key-dialog");
  at("key-wrong").hidden = !wasWrong;
  at("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const key = at("key").value;
      at("key").value = "";
      resolve(dialog.returnValue === "use" ? key : null);
    }, { once: true });
  });
}

// --- Hands on the page

at("choose").addEventListener("click", () => at("files").click());
at("files").addEventListener("change", () => {
  take([...at("files").files]);
  at("files").value = ""; // so that the same file can be chosen again
});
at("stop").addEventListener("click", () => stop?.abort());
at("forget").addEventListener("click", forget);
at("only-doubtful").addEventListener("change", () => at("batches").classList.toggle("only-doubtful", at("only-doubtful").checked));
at("key-cancel").addEventListener("click", () => at("key-dialog").close(""));
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  at("key-dialog").close("use");
});
for (const link of at("model-links").querySelectorAll("a")) link.addEventListener("click", openDocument);

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take([...event.dataTransfer.files]);
});

start();
