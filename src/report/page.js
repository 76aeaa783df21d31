(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("page");


  // Numbers ------------------------------------------------------------------------------------------------------------
  const short = text => text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  const show = {
    microseconds: value => value < 1e3 ? digits(value) + " µs" : value < 1e6 ? digits(value / 1e3) + " ms" : digits(value / 1e6) + " s",
    persecond: value => grouped(value) + "/s",
    count: value => Math.abs(value - Math.round(value)) < 1e-9 ? grouped(value) : digits(value),
  };
  const tick = {
    microseconds: value => value < 1e3 ? short(digits(value)) + " µs" : value < 1e6 ? short(digits(value / 1e3)) + " ms" : short(digits(value / 1e6)) + " s",
    persecond: value => value >= 1e6 ? short(digits(value / 1e6)) + "M" : value >= 1e4 ? short(digits(value / 1e3)) + "k" : grouped(value),
    count: value => value >= 1e6 ? short(digits(value / 1e6)) + "M" : value % 1 ? "" : grouped(value),
  };
  // The next 1, 2 or 5 with zeros: uPlot counts the lines of a logarithmic grid from the end of its axis.
  const round = (value, toward) => {
    const power = 10 ** Math.floor(Math.log10(value)), lead = value / power;
    const leads = toward === Math.ceil ? [1, 2, 5, 10].find(step => step >= lead) : [5, 2, 1].find(step => step <= lead);
    return leads * power;
  };
  const percentile = x => {
    const nines = Math.max(0, Math.ceil(Math.log10(x) - 1e-9));
    const text = (100 * (1 - 1 / x)).toFixed(Math.max(0, nines - 1));
    return "p" + (text.includes(".") ? text.replace(/0+$/, "").replace(/\.$/, "") : text);
  };

  // Head ---------------------------------------------------------------------------------------------------------------
  const header = add(main, "header");
  const titles = add(header, "div");
  add(titles, "h1", "", page.title);
  add(titles, "div", "subtitle", page.subtitle);
  if (page.verdict) {
    const tone = `var(--${page.verdict.tone})`;
    add(header, "div", "verdict", page.verdict.text).style.setProperty("--tone", tone);
    if (page.verdict.reasons.length) {
      const reasons = add(main, "div", "reasons");
      reasons.style.setProperty("--tone", tone);
      page.verdict.reasons.forEach(reason => add(reasons, "div", "", reason));
    }
  }
  if (page.figures.length) {
    const figures = add(main, "div", "figures");
    for (const figure of page.figures) {
      const panel = add(figures, "div", "panel figure");
      add(panel, "div", "name", figure.name);
      add(panel, "div", "value", figure.value);
      add(panel, "div", "note", figure.note);
    }
  }

  // Charts -------------------------------------------------------------------------------------------------------------
  const charts = add(main, "div", "charts");
  const overTime = [];
  let zooming = false;
  // By loops: spread over the arguments of a function, a long run is more than the stack holds.
  const extent = (lists, counts) => {
    let min = Infinity, max = -Infinity;
    for (const list of lists) for (const value of list) if (value != null && counts(value)) {
      if (value < min) min = value;
      if (value > max) max = value;
    }
    return [min, max];
  };
  const times = page.charts.filter(chart => chart.axis === "time").flatMap(chart => chart.lines.map(line => line.x));
  const [start, end] = extent(times, () => true);
  const wholeTime = start <= end ? [Math.min(0, start), end] : [0, 1];
  const zoom = (from, min, max) => {
    if (zooming) return;
    zooming = true;
    overTime.forEach(plot => { if (plot !== from) plot.setScale("x", { min, max }); });
    zooming = false;
  };

  // A marker is a fine line with a triangle on top; its text is shown when the pointer comes near.
  const markersOf = markers => {
    let tip;
    return {
      hooks: {
        init: plot => { tip = add(plot.over, "div", "tip"); },
        draw: plot => {
          const { ctx, bbox } = plot, ratio = devicePixelRatio;
          ctx.save();
          ctx.beginPath();
          ctx.rect(bbox.left, bbox.top - 10 * ratio, bbox.width, bbox.height + 10 * ratio);
          ctx.clip();
          for (const marker of markers) {
            const x = plot.valToPos(marker.x, "x", true);
            ctx.strokeStyle = ctx.fillStyle = color(marker.color);
            ctx.globalAlpha = .35;
            ctx.lineWidth = ratio;
            ctx.beginPath(); ctx.moveTo(x, bbox.top); ctx.lineTo(x, bbox.top + bbox.height); ctx.stroke();
            ctx.globalAlpha = 1;
            ctx.beginPath(); ctx.moveTo(x - 4 * ratio, bbox.top - 7 * ratio); ctx.lineTo(x + 4 * ratio, bbox.top - 7 * ratio); ctx.lineTo(x, bbox.top); ctx.fill();
          }
          ctx.restore();
        },
        setCursor: plot => {
          const { left } = plot.cursor;
          const near = left < 0 ? [] : markers
            .map(marker => [Math.abs(plot.valToPos(marker.x, "x") - left), marker])
            .filter(([distance]) => distance < 7).sort((one, other) => one[0] - other[0]).slice(0, 4);
          tip.style.display = near.length ? "block" : "none";
          if (!near.length) return;
          tip.textContent = near.map(([, marker]) => marker.text).join("\n\n");
          const wide = plot.over.clientWidth;
          tip.style.top = "8px";
          tip.style.left = left > wide / 2 ? "" : left + 14 + "px";
          tip.style.right = left > wide / 2 ? wide - left + 14 + "px" : "";
        },
      },
    };
  };

  const draw = (chart, holder) => {
    const isTime = chart.axis === "time";
    const font = "12px system-ui, sans-serif";
    const stroke = color("soft"), grid = { stroke: color("grid"), width: 1 }, ticks = { stroke: color("line"), width: 1, size: 5 };
    // Lines with the same points share a table: uPlot joins the rest.
    const data = uPlot.join(chart.lines.map(line => [line.x, line.y]), chart.lines.map(() => [1]));
    const series = chart.lines.map(line => ({
      label: line.name,
      stroke: () => color(line.color),
      width: line.other ? 1.25 : 1.75,
      dash: line.other ? [5, 4] : undefined,
      fill: line.filled ? `color-mix(in srgb, ${color(line.color)} 12%, transparent)` : undefined,
      paths: line.stepped ? uPlot.paths.stepped({ align: 1 }) : uPlot.paths.linear(),
      points: { show: line.x.length < 2 },
      value: (_, value) => value == null ? "–" : show[chart.unit](value),
    }));
    const [least] = extent(chart.lines.map(line => line.y), value => value > 0);
    const options = {
      width: holder.clientWidth,
      height: chart.axis === "percentile" ? 290 : 250,
      plugins: [markersOf(chart.markers)],
      padding: [chart.markers.length ? 14 : 8, 12, 0, 0],
      cursor: {
        drag: { x: true, y: false, setScale: true },
        sync: isTime ? { key: "time", setSeries: false } : undefined,
        focus: { prox: 24 },
        points: { size: 7 },
      },
      focus: { alpha: .45 },
      legend: { live: true },
      scales: {
        x: isTime ? { time: false, range: (plot, min, max) => min == null ? wholeTime : [min, max] } : { time: false, distr: 3, log: 10, range: (plot, min, max) => [Math.max(1, min ?? 1), Math.max(max ?? 10, 1.01)] },
        y: chart.logarithmic && isFinite(least)
          ? { distr: 3, log: 10, range: (plot, min, max) => min == null ? [1, 10] : [round(Math.max(min, least) * .98, Math.floor), round(max * 1.02, Math.ceil)] }
          : { range: (plot, min, max) => [0, max > 0 ? max * 1.08 : 1] },
      },
      axes: [
        {
          stroke, grid, ticks, font,
          values: (plot, splits) => splits.map(value => value == null ? "" : isTime ? short(value.toFixed(3)) + " s" : percentile(value)),
        },
        {
          stroke, grid, ticks, font, size: 66,
          values: (plot, splits) => splits.map(value => value == null ? "" : tick[chart.unit](value)),
        },
      ],
      series: [
        { label: isTime ? "time" : "percentile", value: (_, value) => value == null ? "–" : isTime ? value.toFixed(2) + " s" : percentile(value) },
        ...series,
      ],
      hooks: {
        setScale: [(plot, key) => { if (isTime && key === "x") zoom(plot, plot.scales.x.min, plot.scales.x.max); }],
      },
    };
    const plot = new uPlot(options, data, holder);
    if (isTime) overTime.push(plot);
    return plot;
  };

  const all = [];
  for (const chart of page.charts) {
    const panel = add(charts, "section", "panel chart");
    add(panel, "h2", "", chart.title);
    add(panel, "div", "help", chart.help);
    const holder = add(panel, "div", "plot");
    all.push({ chart, holder, plot: draw(chart, holder) });
  }
  addEventListener("resize", () => all.forEach(({ plot, holder }) => plot.setSize({ width: holder.clientWidth, height: plot.height })));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    overTime.length = 0;
    all.forEach(one => { one.plot.destroy(); one.plot = draw(one.chart, one.holder); });
  });

  // Tables -------------------------------------------------------------------------------------------------------------
  const tables = add(main, "div", "tables");
  for (const table of page.tables) {
    const panel = add(tables, "section", "panel table" + (table.wide ? " wide" : ""));
    add(panel, "h2", "", table.title);
    const cells = add(panel, "table", "cells");
    if (table.head.length) {
      const row = add(cells, "tr");
      table.head.forEach(text => add(row, "th", "", text));
    }
    for (const line of table.rows) {
      const row = add(cells, "tr");
      line.forEach(text => add(row, "td", "", text));
    }
  }
  const footer = add(main, "footer");
  add(footer, "span", "", page.footer);
  add(footer, "span", "", page.charts.length ? "drag to zoom, double-click to zoom out · charts by uPlot" : "");
})();
