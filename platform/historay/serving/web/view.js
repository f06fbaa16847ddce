// Draws tiles and what was answered on them. Text goes in as text, never as markup.

const WARNINGS = { blank: "blank", "not-he": "not H&E", "unlike-training": "unlike training", blurred: "blurred", pen: "marked by pen" };

const clone = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

// Three decimals, as the report has them; never a 0 or 1 that the number is not.
export function inFigures(probability) {
  if (probability > 0 && probability < 0.0005) return "< 0.001";
  if (probability < 1 && probability >= 0.9995) return "> 0.999";
  return probability.toFixed(3);
}

export function drawBatch(tiles, title) {
  const batch = clone("batch-template");
  show(batch, "h3", title);
  batch.querySelector("ol").append(...tiles.map((tile) => tile.element));
  return batch;
}

// A file that waits for its answer: its picture, its name, and the element that the answer will be drawn into.
export function drawTile(file) {
  const element = clone("tile-template");
  const url = URL.createObjectURL(file);
  const photo = element.querySelector(".photo");
  element.querySelector(".stack").setAttribute("aria-label", `Enlarge ${file.name}`);
  photo.addEventListener("error", () => {
    photo.hidden = true;
    element.querySelector(".no-photo").hidden = false;
  });
  photo.src = url;
  show(element, ".name", file.name);
  return { file, element, url, state: "waiting" };
}

// Shows a tile, with its heat map, as large as the window allows.
export function enlarge(tile, dialog) {
  const slider = dialog.querySelector("input");
  const original = tile.element.querySelector(".fade input");
  const pictures = [...tile.element.querySelectorAll(".photo, .heat")].map((picture) => picture.cloneNode());
  const heat = pictures[1];
  show(dialog, ".name", tile.file.name);
  dialog.querySelector(".stack").replaceChildren(...pictures);
  show(dialog, ".fade span", tile.element.querySelector(".fade span").textContent);
  dialog.querySelector(".fade").hidden = heat.hidden;
  slider.value = original.value;
  slider.oninput = () => {
    heat.style.opacity = String(slider.value / 100);
    original.value = slider.value;
    original.dispatchEvent(new Event("input"));
  };
  dialog.showModal();
}

export function drawPrediction(tile, result, answer) {
  const { element } = tile;
  tile.state = result.abstain ? "abstains" : "answered";
  tile.label = result.label;
  tile.doubtful = Boolean(result.abstain) || warningsOf(result).length > 0;
  mark(tile);
  show(element, ".label", result.abstain ? "Abstains" : result.label);
  if (result.abstain) show(element, ".instead", `${inSentence(result.abstain_reason)} The label alone would be ${result.label}.`);
  drawBars(element, result, answer.operating_point);
  if (result.prediction_set !== null) show(element, ".set", `Prediction set: ${result.prediction_set.join(", ") || "empty"}`);
  drawWarnings(element, warningsOf(result));
  drawHeat(element, result, tile.file.name);
  show(element.closest(".batch"), ".by", `by ${answer.model}`);
}

// A tile without a prediction: refused by the endpoint, or never sent.
export function drawRefusal(tile, detail, reason) {
  tile.state = "refused";
  tile.doubtful = true;
  mark(tile);
  show(tile.element, ".label", "Not used");
  show(tile.element, ".instead", inSentence(detail));
  show(tile.element, ".point", `Reason: ${reason}`);
}

export function drawFacts(list, model) {
  const point = model.operating_point;
  const facts = [
    ["Name", model.model],
    ["Network", `${model.architecture}, ${model.input_px} × ${model.input_px} pixels`],
    ["Classes", model.classes.join(", ")],
    ["Resolution", model.mpp === null ? "of the training tiles unknown or mixed" : `${model.mpp} µm per pixel`],
    ["Label", point === null ? "the most probable class" : `${point.positive_class} from ${inFigures(point.threshold)} on`],
    ["Calibration", model.calibration],
    ["Prediction sets", model.prediction_sets === null ? "none: this model never abstains" : inSentence(model.prediction_sets)],
    ["Trained on", model.dataset],
  ];
  if (model.accepted_leaks.length > 0) facts.push(["Leaks accepted", `${model.accepted_leaks.join(", ")}: figures in the report are too good`]);
  list.replaceChildren(...facts.flatMap(([term, text]) => [withText("dt", term), withText("dd", text)]));
}

// What the answering replica was asked lately, against the tiles that the model was validated on.
export function drawDrift(element, drift) {
  const moved = drift.quantities.filter((quantity) => quantity.alert).map(({ quantity }) => quantity);
  const seen = `the last ${drift.num_tiles} tiles asked here`;
  element.hidden = drift.quantities.length === 0 || drift.num_tiles === 0;
  element.classList.toggle("alert", moved.length > 0);
  element.textContent = moved.length > 0
    ? `Drift: ${seen} are spread otherwise than those of validation in ${moved.join(", ")}.`
    : `Drift: none seen in ${seen}.`;
}

function drawBars(element, result, point) {
  const rows = Object.entries(result.probabilities).map(([name, probability]) => {
    const row = clone("bar-template");
    row.querySelector(".class").textContent = name;
    const value = row.querySelector(".value");
    value.textContent = inFigures(probability);
    value.value = String(probability);
    row.querySelector(".fill").style.width = `${100 * probability}%`;
    row.classList.toggle("chosen", name === result.label);
    if (name === point?.positive_class) {
      const tick = row.querySelector(".tick");
      tick.style.left = `${100 * point.threshold}%`;
      tick.hidden = false;
    }
    return row;
  });
  element.querySelector(".bars").replaceChildren(...rows);
  element.querySelector(".bars").classList.toggle("many", rows.length > 3);
  if (point) show(element, ".point", `Line: ${point.positive_class} from ${inFigures(point.threshold)} on`);
}

function drawHeat(element, result, name) {
  if (result.heatmap_missing) show(element, ".no-heat", `No heat map: ${result.heatmap_missing}.`);
  if (!result.heatmap_png) return;
  const heat = element.querySelector(".heat");
  const fade = element.querySelector(".fade");
  const slider = fade.querySelector("input");
  const apply = () => { heat.style.opacity = String(slider.value / 100); };
  show(fade, "span", `Evidence for ${result.label}`);
  slider.setAttribute("aria-label", `Evidence for ${result.label} in ${name}, opacity in percent`);
  slider.addEventListener("input", apply);
  apply();
  heat.src = `data:image/png;base64,${result.heatmap_png}`;
  heat.hidden = false;
  fade.hidden = false;
}

function drawWarnings(element, warnings) {
  const list = element.querySelector(".warnings");
  list.replaceChildren(...warnings.map((text) => withText("li", text)));
  list.hidden = warnings.length === 0;
}

// The figures stand in the reason for abstaining, which a warning always is.
function warningsOf(result) {
  return (result.input?.reasons ?? []).map(({ code }) => `Input: ${WARNINGS[code] ?? code}`);
}

function mark(tile) {
  tile.element.dataset.state = tile.state;
  tile.element.dataset.doubtful = String(tile.doubtful);
}

function show(element, selector, text) {
  const found = element.querySelector(selector);
  found.textContent = text;
  found.hidden = false;
}

function withText(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function inSentence(text) {
  const start = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(start) ? start : `${start}.`;
}
