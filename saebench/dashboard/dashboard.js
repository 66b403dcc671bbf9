"use strict";
// The browser of latents. Text goes in through textContent only.
const $ = id => document.getElementById(id), SHOWN = 300;
let page, byNumber, current;

function element(name, text, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  made.textContent = text ?? "";
  return made;
}
const share = row => row.n / Math.max(1, page.tokens);
const percent = value => `${+(100 * value).toPrecision(3)} %`;
const word = token => page.words[token].replaceAll("\n", "⏎");
const visibleWord = token => word(token).trim() ? word(token) : `“${word(token)}”`;

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), one => one.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

// A latent's searchable text: its number, explanation, promoted tokens and the tokens on which it peaks.
function searchable(row) {
  const peaks = Object.values(row.windows).flat().map(([, tokens, z]) => word(tokens[z.indexOf(Math.max(...z))]));
  return [row.latent, row.explanation, ...(row.top ?? []).map(([token]) => word(token)), ...peaks].join("\n").toLowerCase();
}

function search() {
  const wanted = $("search").value.trim().toLowerCase();
  const found = page.latents.filter(row => !wanted || (/^\d+$/.test(wanted) ? String(row.latent).startsWith(wanted) : row.text.includes(wanted)));
  $("count").textContent = `${found.length.toLocaleString("en")} latents` + (found.length > SHOWN ? `, the first ${SHOWN} listed` : "");
  $("list").replaceChildren(...found.slice(0, SHOWN).map(row => {
    const item = element("li"), button = element("button", `${row.latent}`, { type: "button" });
    const hint = row.explanation || (row.top ?? []).slice(0, 4).map(([token]) => visibleWord(token)).join(" ");
    button.append(element("small", `${row.n ? percent(share(row)) : "never fires"} · ${hint}`));
    button.setAttribute("aria-current", String(row.latent === current));
    button.addEventListener("click", () => show(row.latent));
    item.append(button);
    return item;
  }));
}

function pairs(title, rows, label) {
  const made = element("div"), table = element("table");
  made.append(element("h3", title));
  for (const [key, value] of rows ?? []) {
    const line = element("tr"), cell = element("td");
    cell.append(label(key));
    line.append(cell, element("td", value.toFixed(3)));
    table.append(line);
  }
  made.append(rows?.length ? table : element("p", "none", { className: "soft" }));
  return made;
}

function link(latent) {
  const button = element("button", `${latent}`, { type: "button", className: "link" });
  button.addEventListener("click", () => show(latent));
  return button;
}

function bars(row) {
  const made = element("div"), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  made.append(element("h3", `Activations (z > 0), n = ${row.n.toLocaleString("en")}`));
  if (!row.n) return made;
  const first = row.histogram[0][0], last = row.histogram.at(-1)[0], most = Math.max(...row.histogram.map(([, count]) => count));
  svg.setAttribute("viewBox", `0 0 ${last - first + 1} 1`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "bars");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "histogram of activations");
  for (const [bin, count] of row.histogram) {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of Object.entries({ x: bin - first + 0.05, y: 1 - count / most, width: 0.9, height: count / most })) bar.setAttribute(name, value);
    bar.dataset.count = count;
    bar.dataset.tip = `${bin ? page.edges[bin] : 0} to ${bin + 2 < page.edges.length ? page.edges[bin + 1] : "∞"}: ${count.toLocaleString("en")} tokens`;
    svg.append(bar);
  }
  made.append(svg, element("small", `from ${page.edges[first]} to ${page.edges[last + 1]}, logarithmic`));
  return made;
}

function windowOf([context, tokens, z], most) {
  const made = element("div", "", { className: "window", title: `context ${context}` }), peak = z.indexOf(Math.max(...z));
  tokens.forEach((token, i) => {
    const span = element("span", word(token));
    if (i === peak) span.className = "peak";
    if (z[i] > 0) {
      span.style.setProperty("--heat", `${Math.round(10 + 45 * z[i] / most)}%`);
      span.dataset.tip = `z = ${z[i]}`;
    }
    made.append(span);
  });
  return made;
}

function show(latent) {
  const row = byNumber.get(latent);
  if (!row) return;
  current = latent;
  history.replaceState(null, "", `#${latent}`);
  const windows = Object.entries(row.windows), most = Math.max(...windows.flatMap(([, found]) => found.flatMap(([, , z]) => z)));
  const columns = element("div", "", { className: "columns" });
  columns.append(bars(row), pairs("Promoted tokens (logits)", row.top, visibleWord), pairs("Suppressed tokens (logits)", row.bottom, visibleWord),
    pairs("Correlated latents (Pearson)", row.correlated, link), pairs("Decoder neighbours (cosine)", row.neighbours, link));
  const scores = Object.entries(row.scores).map(([name, value]) => `${name} ${+value.toPrecision(4)}`).join(", ");
  $("latent").replaceChildren(
    element("h2", `Latent ${latent}`),
    element("p", row.explanation || "No record explains this latent."), ...(scores ? [element("p", scores, { className: "soft" })] : []),
    element("p", `Fires on ${row.n.toLocaleString("en")} of ${page.tokens.toLocaleString("en")} tokens, density ${percent(share(row))}.`, { className: "soft" }),
    element("code", `saebench steer --sae ${page.path} --latent ${latent} --strength 2,4 "Once upon a time"`), columns,
    ...windows.flatMap(([kind, found]) => [element("h3", `${kind[0].toUpperCase()}${kind.slice(1)}, n = ${found.length}`), ...found.map(one => windowOf(one, most))]));
  search();
}

document.addEventListener("mousemove", event => {
  const tip = event.target.dataset?.tip;
  $("tip").hidden = !tip;
  if (!tip) return;
  $("tip").textContent = tip;
  $("tip").style.left = `${Math.min(event.clientX + 12, innerWidth - $("tip").offsetWidth - 8)}px`;
  $("tip").style.top = `${event.clientY + 14}px`;
});
$("search").addEventListener("input", search);

unpack($("data").textContent).then(found => {
  page = found;
  for (const row of page.latents) row.text = searchable(row);
  page.latents.sort((a, b) => b.n - a.n || a.latent - b.latent);
  byNumber = new Map(page.latents.map(row => [row.latent, row]));
  $("about").textContent = `${page.latents.length.toLocaleString("en")} of ${page.d_sae.toLocaleString("en")} latents · ${page.model} · ${page.hook} · `
    + `${page.contexts.toLocaleString("en")} contexts of ${page.task}, ${page.tokens.toLocaleString("en")} tokens without special ones · ${page.sha256.slice(0, 16)}`;
  show(byNumber.has(+location.hash.slice(1)) && location.hash ? +location.hash.slice(1) : page.latents[0].latent);
  document.body.dataset.ready = "1";
});
