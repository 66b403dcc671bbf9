"use strict";
// Sorting, filtering, details and hover. Text goes in through textContent only.
const boards = JSON.parse(document.getElementById("data").textContent);
const dialog = document.getElementById("details"), tip = document.getElementById("tip");

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text ?? "";
  return made;
}

// [name, text] of each fact about a row, in one order for all.
function about(board, index) {
  const { facts, common, rows } = boards[board], all = { ...common, ...rows[index].about };
  return facts.filter(name => name in all).map(name => [name, all[name]]);
}

// Numbers by size, names by letters; what has no value is last in either order.
function sortBy(table, index, descending) {
  const body = table.tBodies[0], plain = index < 2;
  const keyed = [...body.rows].map(row => {
    const cell = row.cells[index];
    return [plain ? cell.textContent : cell.dataset.v === undefined ? NaN : +cell.dataset.v, row];
  });
  const turn = descending ? -1 : 1;
  keyed.sort(([a], [b]) => plain ? turn * a.localeCompare(b, undefined, { numeric: true })
    : Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : turn * (a - b));
  body.append(...keyed.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, i) =>
    head.setAttribute("aria-sort", i !== index ? "none" : descending ? "descending" : "ascending"));
}

// Of the rows that the filter keeps, only the first so many are laid out until all are asked for.
function shorten(section) {
  const table = section.querySelector("table.board"), button = section.querySelector(".all");
  const kept = [...table.tBodies[0].rows].filter(row => !row.classList.contains("hidden"));
  kept.forEach((row, i) => row.classList.toggle("more", i >= +table.dataset.shown));
  button.hidden = kept.length <= +table.dataset.shown;
}

function filter(section) {
  const get = name => section.querySelector(`.filters .${name}`).value;
  const name = get("name").toLowerCase(), kind = get("kind");
  const low = +get("low"), high = get("high") === "" ? Infinity : +get("high");
  const most = section.querySelector(".filters .sparsity")?.value ?? "";
  const shown = new Set();
  for (const row of section.querySelectorAll("tbody tr")) {
    const d = row.dataset, sparse = most === "" || (d.sparsity !== "" && +d.sparsity <= +most);
    const keep = row.cells[0].textContent.toLowerCase().includes(name) && (!kind || d.kind === kind)
      && +d.latents >= low && +d.latents <= high && sparse;
    row.classList.toggle("hidden", !keep);
    if (keep) shown.add(d.row);
  }
  for (const point of section.querySelectorAll("svg [data-row]"))
    point.classList.toggle("hidden", !shown.has(point.dataset.row));
  section.querySelector("output").textContent = `${shown.size} SAEs`;
  shorten(section);
}

function open(board, index) {
  const { columns } = boards[board], row = boards[board].rows[index];
  document.getElementById("details-name").textContent = row.name;
  const page = document.querySelector(`section[data-board="${board}"] tr[data-row="${index}"] a`);
  const link = document.getElementById("details-page");
  link.hidden = !page;
  if (page) link.href = page.href;
  dialog.querySelector("dl").replaceChildren(
    ...about(board, index).flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
  dialog.querySelector("tbody").replaceChildren(...row.cells.map(([value, interval, rank, n], i) => {
    const line = element("tr");
    const texts = [columns[i], value, interval, rank == null ? "" : `#${rank}`, n == null ? "" : n.toLocaleString("en")];
    line.append(...texts.map(text => element("td", text)));
    return line;
  }));
  location.replace(`#${board}-${index}`);
  dialog.showModal();
}
dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));

function hover(board, index, event) {
  const row = boards[board].rows[index];
  const lines = about(board, index).map(([name, value]) => `${name}: ${value}`);
  tip.textContent = [row.name, ...lines].join("\n");
  tip.hidden = false;
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8)}px`;
}

for (const section of document.querySelectorAll("section[data-board]")) {
  const board = +section.dataset.board;
  [...section.querySelectorAll("table.board thead th")].forEach((head, index) =>
    head.firstChild.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sortBy(head.closest("table"), index, now === "none" ? head.dataset.best === "higher" : now === "ascending");
      shorten(section);
    }));
  section.querySelector(".all").addEventListener("click", () => {
    section.querySelector("table.board").dataset.shown = "Infinity";
    shorten(section);
  });
  section.querySelector(".filters").addEventListener("input", () => filter(section));
  section.addEventListener("click", event => {
    const found = event.target.closest("use[data-row], .open");
    if (found) open(board, +found.closest("[data-row]").dataset.row);
  });
  section.addEventListener("mousemove", event => {
    const found = event.target.closest("use[data-row], .open");
    if (found) hover(board, +found.closest("[data-row]").dataset.row, event); else tip.hidden = true;
  });
  section.addEventListener("mouseleave", () => { tip.hidden = true; });
}

const link = /^#(\d+)-(\d+)$/.exec(location.hash);
if (link && boards[+link[1]]?.rows[+link[2]]) open(+link[1], +link[2]);
