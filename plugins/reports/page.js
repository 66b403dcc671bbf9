"use strict";
// State in the address, filters, tables and details. Text goes in through textContent only.
const page = JSON.parse(document.getElementById("data").textContent), boards = page.boards;
const $ = (query, root = document) => root.querySelector(query), $$ = (query, root = document) => [...root.querySelectorAll(query)];
const dialog = $("#details"), tip = $("#tip"), form = $("#filters form");
const SVG = "http://www.w3.org/2000/svg";

function element(name, text, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  made.textContent = text ?? "";
  return made;
}

// --- numbers as the tables write them: two digits of the interval's width, else four significant ones ---

function places([, low, high]) {
  if (low == null || high == null || high <= low) return null;
  return Math.max(0, Math.min(6, 1 - Math.floor(Math.log10((high - low) / 2))));
}
const number = (value, digits) => digits == null ? String(+value.toPrecision(4)) : value.toFixed(digits).replace(/^-(0(\.0*)?)$/, "$1");
const scored = cell => typeof cell[0] === "number";
const valueText = cell => scored(cell) ? number(cell[0], places(cell)) : cell[0];
const intervalText = cell => scored(cell) && cell[1] != null && cell[2] != null
  ? `${number(cell[1], places(cell))} … ${number(cell[2], places(cell))}` : "";

// --- the state: what is filtered and drawn; all of it is in the address ---

const state = new URLSearchParams(location.hash.slice(1));
const get = name => state.get(name) ?? "";
const hidden = () => new Set(state.getAll("hide"));

function put(changes) {
  for (const [name, value] of Object.entries(changes)) {
    state.delete(name);
    for (const one of [value].flat()) if (one !== "") state.append(name, one);
  }
  history.replaceState(null, "", `${location.pathname}${location.search}${state.size ? `#${state}` : ""}`);
}

const sites = [...new Map(boards.map(board => [board.site.join("\n"), board.site])).values()];
const site = () => sites.find(([model, hook]) => model === get("model") && hook === get("hook"))
  ?? sites.find(([model]) => model === get("model")) ?? sites[0];
const here = () => boards.filter(board => board.site.join("\n") === site().join("\n"));
const isFloor = row => page.floors.includes(row.arch);

function visible(row) {
  const l0 = row.l0?.[0], from = get("from"), to = get("to"), trained = get("trained");
  return !hidden().has(row.arch) && row.name.toLowerCase().includes(get("name").toLowerCase())
    && row.width >= +get("low") && (get("high") === "" || row.width <= +get("high"))
    && (from === "" || l0 != null && l0 >= +from) && (to === "" || l0 != null && l0 <= +to)
    && (trained === "" || isFloor(row) === (trained === "floor"));
}
// Indices of a board's rows that the filters keep.
const kept = board => board.rows.flatMap((row, i) => visible(row) ? [i] : []);

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", text, { value })));
  select.value = chosen;
}

function fillFilters() {
  const archs = Object.keys(page.styles), shown = archs.filter(arch => !hidden().has(arch));
  options(form.model, [...new Set(sites.map(([model]) => model))].map(model => [model, model]), site()[0]);
  options(form.hook, sites.filter(([model]) => model === site()[0]).map(([, hook]) => [hook, hook]), site()[1]);
  const some = shown.length > 1 && shown.length < archs.length ? [["some", `${shown.length} of ${archs.length}`]] : [];
  options(form.arch, [["", "all"], ...some, ...archs.map(arch => [arch, arch])],
    shown.length === 1 ? shown[0] : some.length ? "some" : "");
  for (const name of ["trained", "from", "to", "low", "high", "name"]) if (form[name].value !== get(name)) form[name].value = get(name);
}

form.addEventListener("input", event => {
  const { name, value } = event.target;
  if (name === "arch") put({ hide: value === "" || value === "some" ? [] : Object.keys(page.styles).filter(arch => arch !== value) });
  else put(name === "model" ? { model: value, hook: "", y: "", x: "" } : name === "hook" ? { hook: value, model: site()[0], y: "", x: "" } : { [name]: value });
  update();
});
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("reset", event => {
  event.preventDefault();
  put({ hide: [], trained: "", from: "", to: "", low: "", high: "", name: "" });
  update();
});

// --- tables ---

// Numbers by size, names by letters; what has no value is last in either order.
function sortBy(table, index, descending) {
  const body = table.tBodies[0], plain = index < 2, turn = descending ? -1 : 1;
  const keyed = [...body.rows].map(row => {
    const cell = row.cells[index];
    return [plain ? cell.textContent : cell.dataset.v === undefined ? NaN : +cell.dataset.v, row];
  });
  keyed.sort(([a], [b]) => plain ? turn * a.localeCompare(b, undefined, { numeric: true })
    : Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : turn * (a - b));
  body.append(...keyed.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, i) =>
    head.setAttribute("aria-sort", i !== index ? "none" : descending ? "descending" : "ascending"));
}

// Of the rows that the filters keep, only the first so many are laid out until all are asked for.
function shorten(section) {
  const table = $("table.board", section), button = $(".all", section);
  const left = [...table.tBodies[0].rows].filter(row => !row.classList.contains("hidden"));
  left.forEach((row, i) => row.classList.toggle("more", i >= +table.dataset.shown));
  button.hidden = left.length <= +table.dataset.shown;
}

function filterTable(section) {
  const board = boards[+section.dataset.board], shown = new Set(kept(board));
  section.hidden = !here().includes(board);
  for (const row of $("table.board", section).tBodies[0].rows) row.classList.toggle("hidden", !shown.has(+row.dataset.row));
  shorten(section);
}

for (const section of $$("details.board")) {
  [...$("thead tr", section).cells].forEach((head, index) => head.firstChild.addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    sortBy(head.closest("table"), index, now === "none" ? head.dataset.best === "higher" : now === "ascending");
    shorten(section);
  }));
  $(".all", section).addEventListener("click", () => {
    $("table.board", section).dataset.shown = "Infinity";
    shorten(section);
  });
  section.addEventListener("click", event => {
    const found = event.target.closest(".open");
    if (found) open(boards[+section.dataset.board], +found.closest("tr").dataset.row);
  });
}

// --- one SAE ---

// [name, text] of each fact about a row, in one order for all.
function about(board, index) {
  const { facts, common, rows } = board, all = { ...common, ...rows[index].about };
  return facts.filter(name => name in all).map(name => [name, all[name]]);
}

function open(board, index) {
  const row = board.rows[index];
  $("#details-name").textContent = row.name;
  const link = $("#details-page"), target = $(`details[data-board="${boards.indexOf(board)}"] tr[data-row="${index}"] a`);
  link.hidden = !target;
  if (target) link.href = target.href;
  $("dl", dialog).replaceChildren(
    ...about(board, index).flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  $("tbody", dialog).replaceChildren(...row.cells.map((cell, i) => {
    const line = element("tr"), [, , , rank, n] = scored(cell) ? cell : [];
    const texts = [board.columns[i], scored(cell) ? valueText(cell) : cell.filter(Boolean).join(": "), intervalText(cell),
      rank == null ? "" : `#${rank}`, n == null ? "" : n.toLocaleString("en")];
    line.append(...texts.map(text => element("td", text)));
    return line;
  }));
  put({ sae: row.id, task: board.caption });
  hover();
  if (!dialog.open) dialog.showModal();
}
dialog.addEventListener("close", () => put({ sae: "", task: "" }));

// Show a row's facts beside the pointer; without a row, hide them.
function hover(board, index, event, lines = []) {
  tip.hidden = !board;
  if (!board) return;
  const facts = about(board, index).map(([name, value]) => `${name}: ${value}`);
  tip.textContent = [board.rows[index].name, ...lines, ...facts].join("\n");
  tip.style.left = `${Math.max(0, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(0, Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8))}px`;
}
