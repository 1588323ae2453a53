// Draws a dashboard and goes on doing so: every few seconds it asks for the rows of each chart, and
// draws those anew that have changed. All that comes from a database is written as text.
"use strict";
(() => {
  const page = JSON.parse(document.getElementById("watcher-page").textContent);
  const REFRESH_MS = 5000;
  const fresh = document.getElementById("watcher-fresh");
  const drawn = new Map();
  let asOf = null, next = 0, seen = null;

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  const TIME = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?Z$/;

  function shown(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") {
      if (Number.isInteger(value)) return String(value);
      const size = Math.abs(value);
      return size >= 1e6 || size < 1e-4 ? value.toExponential(3) : size >= 1000 ? value.toFixed(1)
        : value.toPrecision(4);
    }
    const time = TIME.exec(value);
    return time ? `${time[1]} ${time[2]}` : String(value);
  }

  function age(iso) {
    const seconds = Math.max(0, (Date.now() - Date.parse(iso)) / 1000);
    if (seconds < 90) return `${Math.floor(seconds)} s ago`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
    return seconds < 172800 ? `${Math.round(seconds / 3600)} h ago`
      : `${Math.round(seconds / 86400)} days ago`;
  }

  const clock = (date) => date.toISOString().slice(11, 19);

  async function ask(database, sql) {
    const query = new URLSearchParams({ sql, _shape: "objects" });
    const answer = await fetch(`${page.root}${database}.json?${query}`, { cache: "no-store" });
    const data = await answer.json();
    if (!answer.ok || data.ok === false) throw new Error(data.error || `code ${answer.status}`);
    return data;
  }

  // Of several databases the rows come one after the other, each with the name of its run.
  async function rowsOf(chart) {
    const sources = chart.sources || [{ db: chart.db }];
    const answers = await Promise.all(sources.map((one) => ask(one.db, chart.query)));
    const rows = answers.flatMap((answer, n) => answer.rows.map((row) =>
      sources[n].run === undefined ? row : { ...row, run: sources[n].run }));
    return { rows, cut: answers.some((answer) => answer.truncated) };
  }

  function drawMetric(body, chart, rows) {
    const row = rows[0] || {};
    const value = shown(row[chart.display.field]) || "–";
    body.replaceChildren(element("p", value, "watcher-value"),
      element("p", row[chart.display.note] ?? "", "watcher-note"));
  }

  const WORDS = ["at", "checkpoint", "ranks", "evaluated_at", "kind", "recorded_at", "best", "state"];

  function drawTable(body, chart, rows) {
    const ranges = chart.ranges || {};
    // Two ends stand in one column; what no row has, in none.
    const hidden = [...(chart.hide || []), ...Object.values(ranges)];
    const unknown = (name) => ["ranks", "p_best", ...Object.keys(ranges)].includes(name)
      && rows.every((row) => row[name] === null);
    const names = Object.keys(rows[0]).filter((name) => !hidden.includes(name) && !unknown(name));
    const numeric = names.filter((name) =>
      rows.every((row) => row[name] === null || typeof row[name] === "number"));
    const kind = (name) => numeric.includes(name) ? "watcher-number"
      : WORDS.includes(name) ? "watcher-word" : "";
    const table = element("table"), head = element("tr"), lines = element("tbody");
    for (const name of names) head.append(element("th", titleOf(chart, name), kind(name)));
    for (const row of rows) {
      const line = element("tr");
      for (const name of names) line.append(cell(chart, row, name, kind(name)));
      lines.append(line);
    }
    const top = element("thead");
    top.append(head);
    table.append(top, lines);
    body.replaceChildren(table);
  }

  const titleOf = (chart, name) => chart.titles?.[name] ?? name.replaceAll("_", " ");

  function valueOf(chart, row, name) {
    const value = row[name], other = chart.ranges?.[name];
    if (value === null) return "";
    if (other) return `${shown(value)}–${shown(row[other])}`;
    if (!chart.shares?.includes(name)) return shown(value);
    // One that is neither 0 nor 1 is not shown as that.
    return value > 0 && value < 0.01 ? "<1 %" : value > 0.99 && value < 1 ? ">99 %"
      : `${Math.round(100 * value)} %`;
  }

  function cell(chart, row, name, className) {
    const made = element("td", valueOf(chart, row, name), className);
    if ((className === "watcher-number" || chart.titles?.[name]) && made.textContent) {
      made.dataset.name = titleOf(chart, name);
    }
    if (chart.links === name) {
      const source = chart.sources.find((one) => one.run === row[name]);
      const link = element("a", made.textContent);
      link.href = `${page.root}-/dashboards/${source.db}`;
      made.replaceChildren(link);
    }
    return made;
  }

  // Vega draws no legend of nothing.
  function layersOf(display, rows) {
    const there = (layer) => !layer.needs || rows.some((row) => row[layer.needs] !== null);
    return display.layer.filter(there).map(({ needs, ...layer }) => layer);
  }

  async function drawVega(body, chart, rows) {
    const narrow = body.clientWidth < 560;
    const spec = {
      width: "container",
      background: null,
      autosize: { type: "fit-x", contains: "padding" },
      config: { view: { stroke: null }, font: "Helvetica, Arial, sans-serif",
        axis: { labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal",
          labelColor: "#333", gridColor: "#e6eaee" },
        legend: { labelFontSize: 12, labelLimit: narrow ? 220 : 300,
          ...(chart.sources && { columns: narrow ? 1 : 3 }) } },
      ...chart.display,
      layer: layersOf(chart.display, rows),
      data: { values: rows },
    };
    const inside = element("div");
    inside.style.width = "100%";
    const before = drawn.get(chart)?.view;
    body.replaceChildren(inside);
    before?.finalize();
    const made = await vegaEmbed(inside, spec, { mode: "vega-lite",
      renderer: rows.length > 2000 ? "canvas" : "svg",
      actions: false, logLevel: vega.Error, tooltip: { theme: "custom" } });
    if (chart.caption) body.append(element("p", rows[0][chart.caption], "watcher-note"));
    const caution = rows[0][chart.caution];
    if (caution) body.append(element("p", caution, "watcher-note watcher-caution"));
    return made.view;
  }

  // A run at a glance: what its cards say, a small curve, and what somebody should look at.
  function drawRun(body, chart, [row]) {
    const cards = element("div", undefined, "watcher-glance");
    for (const name of ["state", "best", "last", "queue", "patience"]) {
      const card = element("div");
      card.append(element("p", name, "watcher-note"),
        element("p", shown(row[name]) || "–", "watcher-value"),
        element("p", row[`${name}_note`] ?? "", "watcher-note"));
      cards.append(card);
    }
    const warnings = JSON.parse(row.warnings).filter(Boolean)
      .map((text) => element("p", text, "watcher-warning"));
    body.replaceChildren(...warnings, cards, ...smallCurve(row.metric, JSON.parse(row.curve)));
  }

  function smallCurve(metric, points) {
    if (points.length < 2) return [];
    const [steps, scores] = [1, 2].map((place) => points.map((point) => point[place]));
    const [first, last] = [Math.min(...steps), Math.max(...steps)];
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    const at = (point) => `${(100 * (point[1] - first) / (last - first || 1)).toFixed(2)},${
      (40 - 40 * (point[2] - low) / (high - low || 1)).toFixed(2)}`;
    const svg = (tag, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      return made;
    };
    const curve = svg("svg", { class: "watcher-curve", viewBox: "-1 -4 102 48", role: "img",
      preserveAspectRatio: "none", "aria-label": "score by step" });
    for (const life of new Set(points.map((point) => point[0]))) {
      const own = points.filter((point) => point[0] === life);
      curve.append(svg("polyline", { points: own.map(at).join(" ") }));
    }
    // A line of no length and round ends: a dot, however the curve is stretched.
    const best = points.find((point) => point[3]);
    if (best) curve.append(svg("path", { d: `M${at(best)}h0` }));
    return [curve, element("p", `${metric} between ${shown(low)} and ${shown(high)}, from step ${
      first} to ${last}; the dot is the best`, "watcher-note")];
  }

  const DRAW = { run: drawRun, metric: drawMetric, table: drawTable, "vega-lite": drawVega };

  async function refresh(name, chart, evaluated) {
    const { rows, cut } = await rowsOf(chart);
    const empty = (!evaluated && chart.before) || chart.empty;
    const text = JSON.stringify(rows.length ? rows : [empty]);
    if (drawn.get(chart)?.text === text) return;
    const body = document.getElementById(`chart-${name}`);
    body.parentElement.querySelector(".watcher-cut").hidden = !cut;
    const scrolled = body.scrollTop;
    let view;
    if (!rows.length && empty) {
      drawn.get(chart)?.view?.finalize();
      body.replaceChildren(element("p", empty, "watcher-none"));
    } else if (rows.length) {
      view = await DRAW[chart.library](body, chart, rows);
    }
    body.scrollTop = scrolled;
    drawn.set(chart, { text, view });
  }

  function databases() {
    const all = Object.values(page.charts).flatMap((chart) =>
      chart.sources ? chart.sources.map((one) => one.db) : [chart.db]);
    return [...new Set(all)];
  }

  // What was recorded last, in any of the databases, and a text that changes whenever they do.
  async function latest() {
    const answers = await Promise.all(databases().map((db) => ask(db, page.freshness)));
    const rows = answers.map((answer) => answer.rows[0]);
    const recorded = rows.map((row) => row.recorded_at).filter(Boolean).sort().pop();
    const evaluated = rows.some((row) => row.evaluated);
    return { recorded, evaluated, mark: JSON.stringify(rows) };
  }

  function say(recorded, error) {
    fresh.classList.toggle("watcher-old", Boolean(error));
    if (error) {
      const since = asOf ? `shown is what was there at ${clock(asOf)} UTC` : "nothing was read yet";
      fresh.textContent = `cannot be read now (${error.message}); ${since}`;
    } else {
      const last = recorded ? `last recorded ${shown(recorded)} UTC, ${age(recorded)}`
        : "nothing is recorded yet";
      fresh.textContent = `${last}; read at ${clock(asOf)} UTC, and again every ${
        REFRESH_MS / 1000} s`;
    }
    document.documentElement.dataset.read = String(Number(document.documentElement.dataset.read
      || 0) + 1);
  }

  async function turn() {
    if (!document.hidden || asOf === null) {
      try {
        const { recorded, evaluated, mark } = await latest();
        if (mark !== seen) {
          const charts = Object.entries(page.charts);
          await Promise.all(charts.map(([name, chart]) => refresh(name, chart, evaluated)));
          seen = mark;
        }
        asOf = new Date();
        say(recorded, null);
      } catch (error) {
        say(null, error);
      }
    }
    window.clearTimeout(next);
    next = window.setTimeout(turn, REFRESH_MS);
  }

  document.addEventListener("DOMContentLoaded", turn);
  document.addEventListener("visibilitychange", () => document.hidden || turn());
})();
