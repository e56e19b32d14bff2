"use strict";

// Tables: a heading sorts its column, numbers by value, words by letters, numbers before words.
const order = new Intl.Collator(undefined, { numeric: true });

function value(row, column) {
  const cell = row.cells[column];
  const text = cell.textContent.trim();
  const exact = cell.dataset.value ?? text.replace(/,/g, "");
  return exact !== "" && isFinite(exact) ? Number(exact) : text;
}

function sort(table, column) {
  const heading = table.tHead.rows[0].cells[column];
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const sign = down ? -1 : 1;
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
  rows.sort(([a], [b]) => {
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    if (typeof a === "number" || typeof b === "number") return typeof a === "number" ? -1 : 1;
    return sign * order.compare(a, b);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table"))
  [...table.tHead.rows[0].cells].forEach((heading, column) =>
    heading.querySelector("button").addEventListener("click", () => sort(table, column)));

// The runs, filtered by words, or by the method that a link names.
const filter = document.getElementById("filter");
const rows = [...document.getElementById("all-runs").tBodies[0].rows].map((row) => [row.textContent.toLowerCase(), row]);
let method = null;

function show() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const [text, row] of rows) {
    row.hidden = !((method === null || row.dataset.method === method) && words.every((word) => text.includes(word)));
    shown += !row.hidden;
  }
  const all = shown === rows.length ? "" : ` of ${rows.length}`;
  document.getElementById("count").textContent = `${shown}${all} runs`;
}

filter.addEventListener("input", () => { method = null; show(); });

// One run: its command and configuration.
const details = JSON.parse(document.getElementById("details").textContent);
const dialog = document.getElementById("run");

function showRun(run) {
  const [methodIndex, seed, id, status, ...facts] = details.runs[run];
  document.getElementById("run-title").textContent = id;
  const list = document.getElementById("run-facts");
  list.replaceChildren();
  [["status", status], ["seed", seed], ...details.keys.map((key, i) => [key, facts[i]])]
    .filter(([key, fact]) => key !== "command" && fact !== null)
    .forEach(([key, fact]) => {
      const [name, value] = [document.createElement("dt"), document.createElement("dd")];
      [name.textContent, value.textContent] = [key.replaceAll("_", " "), fact];
      list.append(name, value);
    });
  document.getElementById("run-command").textContent = facts[details.keys.indexOf("command")] ?? "unknown";
  document.getElementById("run-config").textContent = `seed: ${seed}\n${details.configs[methodIndex]}`;
  dialog.showModal();
}

function follow() {
  const [, kind, number] = location.hash.match(/^#(run|method)-(\d+)$/) ?? [];
  if (kind === "run" && number in details.runs) showRun(number);
  if (kind === "method") {
    [method, filter.value] = [number, ""];
    show();
    document.getElementById("runs").scrollIntoView();
  }
}

dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
window.addEventListener("hashchange", follow);
follow();

// Figures: the part that is seen is the SVG's viewBox.
for (const figure of document.querySelectorAll("figure:has(svg)")) {
  const svg = figure.querySelector("svg"), chart = figure.querySelector(".chart");
  const all = svg.getAttribute("viewBox").split(/\s+/).map(Number);
  let box = [...all], start = null;
  const set = ([x, y, w, h]) => {
    [w, h] = [Math.min(w, all[2]), Math.min(h, all[3])];
    box = [Math.min(Math.max(x, 0), all[2] - w), Math.min(Math.max(y, 0), all[3] - h), w, h];
    svg.setAttribute("viewBox", box.join(" "));
  };
  const zoom = (by) => set([box[0] + box[2] * (1 - by) / 2, box[1] + box[3] * (1 - by) / 2, box[2] * by, box[3] * by]);
  const move = (x, y) => set([box[0] + x * box[2] / 8, box[1] + y * box[3] / 8, box[2], box[3]]);
  const keys = {
    "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1 / 0.7), "0": () => set(all),
    ArrowLeft: () => move(-1, 0), ArrowRight: () => move(1, 0), ArrowUp: () => move(0, -1), ArrowDown: () => move(0, 1),
  };
  figure.querySelector(".controls").hidden = false;
  for (const button of figure.querySelectorAll("[data-zoom]"))
    button.addEventListener("click", () => keys[button.dataset.zoom]());
  chart.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  chart.addEventListener("dblclick", () => set(all));
  const at = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  chart.addEventListener("pointerdown", (event) => { if (event.pointerType !== "touch") start = at(event); });
  window.addEventListener("pointerup", (event) => {
    if (!start) return;
    const [from, to] = [start, at(event)];
    start = null;
    const [w, h] = [Math.abs(to.x - from.x), Math.abs(to.y - from.y)];
    if (w > all[2] / 50 && h > all[3] / 50) set([Math.min(from.x, to.x), Math.min(from.y, to.y), w, h]);
  });
  svg.addEventListener("dragstart", (event) => event.preventDefault());
}
