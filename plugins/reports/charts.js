// --- charts: specifications from the page's data, drawn by Vega when they come into view ---

const drawn = new Map();
const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    const chart = drawn.get(target);
    if (!chart) continue;
    chart.near = isIntersecting;
    if (isIntersecting && chart.stale) draw(target);
  }
}, { rootMargin: "300px" });

// Register a chart: `make` gives its board and specification whenever it is drawn.
function chart(node, make) {
  drawn.set(node, { make, stale: true, near: false, turn: 0 });
  watcher.observe(node);
}

async function draw(node) {
  const chart = drawn.get(node), turn = ++chart.turn;
  chart.stale = false;
  const { board, spec, lines } = chart.make(), place = element("div");
  node.style.minHeight = `${node.clientHeight}px`;
  const fitted = { ...spec, width: node.clientWidth, height: node.clientWidth < 500 ? 270 : +(node.dataset.height ?? 290),
    autosize: { type: "fit", contains: "padding" } };
  const { view } = await vegaEmbed(place, fitted, { actions: false, renderer: "svg", tooltip: () => {}, hover: false, logLevel: 1 });
  if (turn !== chart.turn) return view.finalize();
  chart.view?.finalize();
  chart.view = view;
  node.replaceChildren(place);
  node.style.minHeight = "";
  node.dataset.drawn = String(turn);
  const point = item => item?.mark?.marktype === "symbol" && item.datum.row !== undefined;
  view.addEventListener("mousemove", (event, item) => point(item) ? hover(board, item.datum.row, event, lines?.(item.datum.row)) : hover());
  view.addEventListener("mouseout", () => hover());
  view.addEventListener("click", (event, item) => { if (point(item)) open(board, item.datum.row); });
}

function redraw() {
  for (const [node, chart] of drawn) {
    chart.stale = true;
    if (chart.near) draw(node);
  }
}
addEventListener("resize", () => { clearTimeout(redraw.timer); redraw.timer = setTimeout(redraw, 200); });

// --- the large chart ---

const big = $("#chart .plot"), axis = { y: $('#chart [name="y"]'), x: $('#chart [name="x"]') };
big.dataset.height = "400";

// The column against which the score is drawn; undefined: the sparsity axis.
const against = board => get("x") !== "" && board.columns[+get("x")] !== undefined ? +get("x") : undefined;

function bigChart() {
  const [board, y] = main(), x = against(board), sparse = i => x === undefined ? board.rows[i].l0 : board.rows[i].cells[x];
  const rows = kept(board).filter(i => scored(board.rows[i].cells[y]) && sparse(i) && scored(sparse(i)));
  const values = rows.map(i => {
    const [a, a0, a1] = sparse(i), [b, b0, b1] = board.rows[i].cells[y];
    const found = { kind: "sae", row: i, arch: board.rows[i].arch, floor: isFloor(board.rows[i]), x: a, y: b };
    if (a0 != null && a1 != null) Object.assign(found, { x0: a0, x1: a1 });
    return b0 != null && b1 != null ? Object.assign(found, { y0: b0, y1: b1 }) : found;
  });
  const xs = values.map(value => value.x), log = Math.min(...xs) > 0 && Math.max(...xs) > 5 * Math.min(...xs);
  const titles = [x === undefined ? board.sparsity || "L0" : board.labels[x], board.labels[y]];
  const text = (log ? page.log : page.linear).replaceAll('"%x%"', () => JSON.stringify(titles[0])).replaceAll('"%y%"', () => JSON.stringify(titles[1]));
  const spec = JSON.parse(text);
  spec.data.values = values;
  for (const param of spec.params) param.value = (param.name === "y_sign" ? board.signs[y] || 1 : x === undefined ? -1 : board.signs[x] || -1);
  big.setAttribute("aria-label", `${titles[1]} against ${titles[0]}, ${values.length} SAEs`);
  const lines = i => [`${titles[1]}: ${valueText(board.rows[i].cells[y])} (${intervalText(board.rows[i].cells[y]) || "no interval"})`,
    `${titles[0]}: ${valueText(sparse(i))}`];
  return { board, spec, lines };
}

function fillAxes() {
  const [board, y] = main(), choices = here().flatMap(found => {
    const first = new Set(found.headlines), order = [...found.headlines, ...found.columns.keys()].filter((c, i, all) => all.indexOf(c) === i);
    return order.filter(c => found.rows.some(row => scored(row.cells[c]))).map(c => [found, c, first.has(c)]);
  });
  const groups = here().map(found => {
    const group = document.createElement("optgroup");
    group.label = found.task;
    group.append(...choices.filter(([one]) => one === found).map(([, c]) => element("option", found.labels[c], { value: `${boards.indexOf(found)}.${c}` })));
    return group;
  });
  axis.y.replaceChildren(...groups);
  axis.y.value = `${boards.indexOf(board)}.${y}`;
  options(axis.x, [["", "L0"], ...choices.filter(([one, c]) => one === board && c !== y).map(([, c]) => [String(c), board.labels[c]])],
    String(against(board) ?? ""));
}
axis.y.addEventListener("input", () => { put({ y: axis.y.value, x: "" }); update(); });
axis.x.addEventListener("input", () => { put({ x: axis.x.value }); update(); });

// --- legend and small multiples ---

function drawLegend() {
  const archs = Object.keys(page.styles).filter(arch => here().some(board => board.rows.some(row => row.arch === arch)));
  const focused = document.activeElement?.dataset?.arch;
  $("#legend").replaceChildren(...archs.map(arch => {
    const button = element("button", "", { type: "button" }), off = hidden().has(arch);
    button.dataset.arch = arch;
    button.setAttribute("aria-pressed", String(!off));
    button.append(marker(arch), element("span", arch));
    button.addEventListener("click", () => {
      const now = hidden();
      if (!now.delete(arch)) now.add(arch);
      put({ hide: [...now] });
      update();
    });
    return button;
  }));
  if (focused !== undefined) $$("#legend button").find(button => button.dataset.arch === focused)?.focus();
}

function fillMultiples() {
  for (const node of $$("#multiples .plot")) { watcher.unobserve(node); drawn.get(node)?.view?.finalize(); drawn.delete(node); }
  $("#multiples .plots").replaceChildren(...here().flatMap(board => board.charts.map(({ name, spec }) => {
    const figure = element("figure"), plot = element("div", "", { className: "plot" });
    figure.append(element("figcaption", board.task), plot);
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${name} of ${board.task}`);
    chart(plot, () => {
      const shown = new Set(kept(board));
      return { board, spec: { ...spec, data: { values: spec.data.values.filter(one => one.row === undefined || shown.has(one.row)) } } };
    });
    return figure;
  })));
}

let drawnSite = "";
function update() {
  fillFilters();
  fillAxes();
  drawLegend();
  drawBest();
  drawHeat();
  $$("details.board").forEach(filterTable);
  const all = new Map(here().flatMap(board => board.rows.map(row => [row.id, row])));
  $("#count").textContent = `${[...all.values()].filter(visible).length} of ${all.size} SAEs`;
  if (drawnSite !== site().join("\n")) {
    drawnSite = site().join("\n");
    fillMultiples();
  }
  redraw();
}

if (matchMedia("(max-width: 700px)").matches) $("#filters").open = false;
chart(big, bigChart);
update();
function followLink() {
  const board = here().find(found => found.caption === get("task")) ?? here().find(found => found.rows.some(row => row.id === get("sae")));
  const index = board ? board.rows.findIndex(row => row.id === get("sae")) : -1;
  if (index >= 0) open(board, index);
}
followLink();
addEventListener("hashchange", () => {
  for (const name of [...state.keys()]) state.delete(name);
  new URLSearchParams(location.hash.slice(1)).forEach((value, name) => state.append(name, value));
  update();
  followLink();
});
