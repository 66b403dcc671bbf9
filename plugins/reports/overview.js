// --- the overview: best at equal L0, and a heat map of every SAE on every task ---

const HEAT_ROWS = 40;
const main = () => {
  const [number, column] = get("y").split("."), board = boards[+number];
  if (get("y") && here().includes(board) && board.columns[+column] !== undefined) return [board, +column];
  const first = here().find(found => found.main !== null) ?? here()[0];
  return [first, first.main ?? 0];
};
// Whether row i is better than row j by size and significance; undefined: not known.
const beats = (board, column, i, j) => board.better[column] && Boolean(BigInt(board.better[column][i]) >> BigInt(j) & 1n);
const rowButton = (board, index) => {
  const button = element("button", board.rows[index].short || board.rows[index].name,
    { type: "button", className: "open", title: board.rows[index].name });
  button.addEventListener("click", () => open(board, index));
  return button;
};
// A label without its unit.
const plain = label => label.replace(/,.*?(?= [↑↓]|$)/, "");
const short = ({ short, name }) => short || name;

// SAEs whose L0 is within 15 % of a power of two, by that power.
function levels(board, column) {
  const found = new Map();
  for (const i of kept(board)) {
    const l0 = board.rows[i].l0?.[0], level = l0 > 0 ? 2 ** Math.round(Math.log2(l0)) : NaN;
    if (Math.abs(l0 / level - 1) > 0.15 || !scored(board.rows[i].cells[column])) continue;
    found.set(level, [...found.get(level) ?? [], i]);
  }
  return [...found].filter(([level]) => level > 0).sort(([a], [b]) => a - b);
}

function difference(board, column, best, others) {
  if (!others.length) return "no other SAE at this L0";
  if (beats(board, column, best, others[0]) === undefined) {
    const overlap = others.filter(i => {
      const [a, b] = [board.rows[best].cells[column], board.rows[i].cells[column]];
      return a[1] == null || b[1] == null || a[1] <= b[2] && b[1] <= a[2];
    });
    return overlap.length ? `not tested in pairs; intervals overlap with ${overlap.length} of ${others.length}` : "intervals do not overlap";
  }
  const same = others.filter(i => !beats(board, column, best, i)).map(i => short(board.rows[i]));
  if (!same.length) return `yes: significantly better than all ${others.length} others`;
  const more = same.length > 4 ? ` and ${same.length - 4} more` : "";
  return `no, not from ${same.slice(0, 4).join(", ")}${more}` + (same.length < others.length ? `; yes, from ${others.length - same.length} others` : "");
}

function drawBest() {
  const [board, column] = main(), sign = board.signs[column] || 1;
  const value = i => sign * board.rows[i].cells[column][0];
  $("#best .score").textContent = `${plain(board.labels[column])} (${board.task})`;
  $("#best tbody").replaceChildren(...levels(board, column).map(([level, members]) => {
    const line = element("tr"), trained = members.filter(i => !isFloor(board.rows[i])).sort((a, b) => value(b) - value(a));
    const text = i => `${valueText(board.rows[i].cells[column])}`;
    const best = element("td");
    if (trained.length) {
      const small = element("small", ` ${intervalText(board.rows[trained[0]].cells[column])}`);
      best.append(rowButton(board, trained[0]), ` ${text(trained[0])}`, small);
    }
    const floors = members.filter(i => isFloor(board.rows[i])).sort((a, b) => value(b) - value(a)).map(i => {
      const worse = trained.length ? beats(board, column, trained[0], i) : undefined;
      return element("div", `${short(board.rows[i])}: ${text(i)}` + (worse === undefined ? ""
        : worse ? " (significantly worse)" : " (not significantly worse)"));
    });
    const cell = element("td");
    cell.append(...floors.slice(0, 4));
    line.append(element("th", `≈ ${level}`), best,
      element("td", trained.length ? difference(board, column, trained[0], trained.slice(1)) : ""), cell);
    return line;
  }));
  if (!$("#best tbody").rows.length) {
    const line = element("tr");
    line.append(element("td", "No SAE has an L0 within 15 % of a power of two.", { colSpan: 4 }));
    $("#best tbody").append(line);
  }
}

// What colours a cell, higher is better: the rank where there is one, so that SAEs that no test tells apart look the same.
function standing(board, index) {
  const [value, , , rank] = board.rows[index].cells[board.main];
  return rank != null ? -rank : typeof value === "number" ? board.signs[board.main] * value : NaN;
}

function drawHeat() {
  const columns = here().filter(board => board.main !== null);
  const saes = new Map();
  for (const board of columns) for (const i of kept(board)) {
    const row = board.rows[i];
    if (!saes.has(row.id)) saes.set(row.id, { row, at: new Map() });
    saes.get(row.id).at.set(board, i);
  }
  const range = new Map(columns.map(board => {
    const found = kept(board).map(i => standing(board, i)).filter(Number.isFinite);
    return [board, [Math.min(...found), Math.max(...found)]];
  }));
  const key = ({ row, at }) => {
    const board = columns[0], cell = at.has(board) ? board.rows[at.get(board)].cells[board.main] : [];
    return [isFloor(row), Number.isFinite(cell[0]) ? -board.signs[board.main] * cell[0] : Infinity];
  };
  const sorted = [...saes.values()].map(one => [key(one), one]).sort(([[f, a]], [[g, b]]) => f - g || a - b || 0).map(([, one]) => one);
  $("#heat thead tr").replaceChildren(element("th", "SAE", { scope: "col" }), element("th", "L0", { scope: "col" }), ...columns.map(board => {
    const head = element("th", "", { scope: "col" }), button = element("button", "", { type: "button", title: "Draw this score" });
    board.task.split("/").forEach((part, i) => button.append(...i ? ["/", element("wbr"), part] : [part]));
    button.addEventListener("click", () => { put({ y: `${boards.indexOf(board)}.${board.main}`, x: "" }); update(); });
    head.append(button, element("small", plain(board.labels[board.main])));
    return head;
  }));
  const few = $("#heat").dataset.all ? sorted : sorted.slice(0, HEAT_ROWS);
  $("#heat .all").hidden = few.length === sorted.length;
  $("#heat tbody").replaceChildren(...few.map(({ row, at }) => {
    const line = element("tr"), name = element("th", "", { scope: "row" }), [board, index] = [...at][0];
    name.append(marker(row.arch), rowButton(board, index));
    line.append(name, element("td", row.l0 ? String(+row.l0[0].toPrecision(3)) : ""));
    for (const board of columns) line.append(heatCell(board, at.get(board), range.get(board)));
    return line;
  }));
}

function heatCell(board, index, [low, high]) {
  const cell = index === undefined ? ["missing", ""] : board.rows[index].cells[board.main];
  if (!scored(cell)) return element("td", cell[0], { className: "none", title: cell[1] });
  const good = high > low ? (standing(board, index) - low) / (high - low) : 0.5;
  const made = element("td", valueText(cell), { title: intervalText(cell) });
  made.style.setProperty("--heat", `${Math.round(45 * good)}%`);
  if (cell[3] != null) made.append(" ", element("b", `#${cell[3]}`));
  return made;
}

$("#heat .all").addEventListener("click", () => { $("#heat").dataset.all = "1"; drawHeat(); });

function marker(arch) {
  const [colour, path] = page.styles[arch], svg = document.createElementNS(SVG, "svg"), made = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "-1.5 -1.5 3 3");
  svg.setAttribute("class", "marker");
  svg.setAttribute("aria-hidden", "true");
  made.setAttribute("d", path);
  for (const [name, value] of Object.entries({ fill: page.floors.includes(arch) ? "none" : colour, stroke: colour, "stroke-width": 0.3 }))
    made.setAttribute(name, value);
  svg.append(made);
  return svg;
}
