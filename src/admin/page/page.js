(() => {
  // Milliseconds between two looks, how long one may take, and how many are remembered and drawn at the least: five minutes, and one.
  const EVERY = 1000, PATIENCE = 3000, REMEMBERED = 300, DRAWN = 60;
  // Percentiles are those of so many seconds.
  const WINDOW = 10;

  const $ = id => document.getElementById(id);

  // Numbers
  const short = value => value >= 1e6 ? digits(value / 1e6) + "M" : value >= 1e4 ? digits(value / 1e3) + "k" : grouped(value);
  const time = value => value === 0 ? "0" : value < 1e-3 ? digits(value * 1e6) + " µs" : value < 1 ? digits(value * 1e3) + " ms" : value < 120 ? digits(value) + " s"
    : value < 7200 ? Math.round(value / 60) + " min" : value < 172800 ? Math.round(value / 3600) + " h" : Math.round(value / 86400) + " d";
  const size = value => value < 1024 ? grouped(value) + " B" : value < 1 << 20 ? digits(value / 1024) + " KiB" : value < 1 << 30 ? digits(value / (1 << 20)) + " MiB" : digits(value / (1 << 30)) + " GiB";

  // What was seen, the oldest first. An entry without stats is a look that brought nothing.
  const seen = [];
  const total = object => Object.values(object).reduce((sum, value) => sum + (typeof value === "object" ? total(value) : value), 0);

  // The percentile of what came into the buckets between two looks; interpolated within a bucket.
  const percentile = (bounds, before, after, share) => {
    const counts = after.map((count, bucket) => count - (before ? before[bucket] : 0));
    const all = counts[counts.length - 1];
    if (!(all > 0)) return null;
    const rank = share * all;
    const bucket = counts.findIndex(count => count >= rank);
    if (bucket >= bounds.length) return bounds[bounds.length - 1];
    const low = bucket ? bounds[bucket - 1] : bounds[0] / 2, under = bucket ? counts[bucket - 1] : 0;
    return low * (bounds[bucket] / low) ** ((rank - under) / (counts[bucket] - under));
  };

  // An entry as it is drawn: figures of now, rates since the look before, percentiles of the last seconds.
  const entry = (at, stats) => {
    const before = seen.findLast(other => other.stats);
    const same = before && before.stats.pid === stats.pid && stats.uptime_seconds > before.stats.uptime_seconds ? before.stats : null;
    const took = same ? stats.uptime_seconds - same.uptime_seconds : stats.uptime_seconds;
    const rate = of => (of(stats) - (same ? of(same) : 0)) / Math.max(took, 1e-3);
    const old = seen.find(other => other.stats && other.stats.pid === stats.pid && other.at >= at - WINDOW * 1000);
    const { bounds } = stats.buckets;
    const quantile = (name, share) => percentile(bounds, old && old.stats.buckets[name], stats.buckets[name], share);
    return {
      at, stats,
      workers: stats.pool_threads, busy: stats.pool_busy, demand: Math.min(stats.pool_demand, 2 * stats.pool_max), max: stats.pool_max,
      waiting: stats.pool_waiting, pending: stats.requests_pending,
      requests: rate(stats => total(stats.requests_total)), replies: rate(stats => stats.replies_total),
      wait50: quantile("queue_wait_seconds", .5), wait99: quantile("queue_wait_seconds", .99),
      service50: quantile("service_seconds", .5), service99: quantile("service_seconds", .99),
    };
  };

  // Charts
  const charts = [
    { title: "Pool", unit: short, lines: [["workers", "workers", "blue", "filled"], ["busy", "busy", "green"], ["demand", "demand", "orange"], ["max", "max", "grey", "dashed"]] },
    { title: "Work that waits", unit: short, lines: [["waiting", "jobs waiting for a worker", "violet", "filled"], ["pending", "requests pending", "grey"]] },
    { title: "Rates", unit: value => short(value) + "/s", lines: [["requests", "requests", "blue", "filled"], ["replies", "replies", "green"]] },
    { title: `Latency in the last ${WINDOW} s`, unit: time, logarithmic: true, lines: [["wait50", "wait p50", "violet", "dashed"], ["wait99", "p99", "violet"], ["service50", "service p50", "green", "dashed"], ["service99", "p99", "green"]] },
  ];
  for (const chart of charts) {
    const panel = add($("charts"), "section", "panel chart");
    add(panel, "h2", "", chart.title);
    const legend = add(panel, "div", "legend");
    chart.values = chart.lines.map(([, name, tone, style]) => {
      const item = add(legend, "span");
      add(item, "i", style).style.setProperty("--tone", `var(--${tone})`);
      item.append(name);
      return add(item, "b");
    });
    chart.canvas = add(panel, "canvas");
  }
  // The step of an axis of about four: 1, 2 or 5 with zeros, and no less than 1.
  const step = most => {
    const rough = Math.max(most / 4, 1), power = 10 ** Math.floor(Math.log10(rough));
    return [1, 2, 5, 10].find(lead => lead * power >= rough * .999) * power;
  };
  const draw = chart => {
    const { canvas, lines, unit, logarithmic } = chart, ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight, pen = canvas.getContext("2d");
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    pen.scale(ratio, ratio);
    const left = 52, bottom = height - 18, top = 8, right = width - 6;
    let most = 0, least = Infinity;
    for (const one of seen) for (const [key] of lines) if (one[key] != null) {
      most = Math.max(most, one[key]);
      if (one[key] > 0) least = Math.min(least, one[key]);
    }
    const low = logarithmic && least < Infinity ? 10 ** Math.floor(Math.log10(least)) : 0;
    const each = step(most);
    const high = low ? Math.max(10 ** Math.ceil(Math.log10(most)), low * 10) : Math.max(Math.ceil(most / each - .02), 2) * each;
    const y = value => bottom - (bottom - top) * (low ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : value / high);
    const now = seen.length ? seen[seen.length - 1].at : 0, span = Math.max(seen.length ? now - seen[0].at : 0, DRAWN * EVERY);
    const x = at => right - (right - left) * (now - at) / span;
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.lineWidth = 1;
    pen.strokeStyle = color("grid");
    pen.fillStyle = color("soft");
    const marks = low ? Array.from({ length: Math.round(Math.log10(high / low)) + 1 }, (_, power) => low * 10 ** power) : Array.from({ length: Math.round(high / each) + 1 }, (_, number) => number * each);
    const every = Math.ceil(marks.length / 6);
    marks.forEach((mark, number) => {
      pen.beginPath(); pen.moveTo(left, y(mark)); pen.lineTo(right, y(mark)); pen.stroke();
      pen.textAlign = "right";
      if (number % every === 0) pen.fillText(unit(mark), left - 6, y(mark));
    });
    pen.textAlign = "center";
    const between = span > 150000 ? 60 : span > 75000 ? 30 : 15;
    for (let ago = between; ago * 1000 < span; ago += between) pen.fillText(between < 60 ? `−${ago} s` : `−${ago / 60} min`, x(now - ago * 1000), height - 7);
    for (const [key, , tone, style] of lines) {
      pen.strokeStyle = pen.fillStyle = color(tone);
      pen.lineWidth = 1.6;
      pen.setLineDash(style === "dashed" ? [4, 4] : []);
      // A look that brought nothing is a gap.
      let run = [];
      const end = () => {
        if (!run.length) return;
        pen.beginPath();
        run.forEach(([at, value], number) => number ? pen.lineTo(x(at), y(value)) : pen.moveTo(x(at), y(value)));
        if (run.length === 1) pen.lineTo(x(run[0][0]) + 1, y(run[0][1]));
        pen.stroke();
        if (style === "filled") {
          pen.lineTo(x(run[run.length - 1][0]), bottom); pen.lineTo(x(run[0][0]), bottom);
          pen.globalAlpha = .13; pen.fill(); pen.globalAlpha = 1;
        }
        run = [];
      };
      for (const one of seen) one[key] == null ? end() : run.push([one.at, one[key]]);
      end();
      pen.setLineDash([]);
    }
    const last = seen[seen.length - 1];
    lines.forEach(([key], number) => { chart.values[number].textContent = last && last[key] != null ? unit(last[key]) : "–"; });
  };

  // Figures
  const figures = {};
  for (const [key, name] of [["rate", "requests/s"], ["connections", "connections"], ["workers", "workers busy"], ["demand", "demand"], ["waiting", "jobs waiting"], ["wait", "wait p99"], ["service", "service p99"], ["held", "held bytes"]]) {
    const panel = add($("figures"), "div", "panel figure");
    add(panel, "div", "name", name);
    figures[key] = [add(panel, "div", "value", "–"), add(panel, "div", "note", "")];
  }
  const figure = (key, value, note) => { figures[key][0].textContent = value; figures[key][1].textContent = note; };

  const table = (id, columns, rows, none) => {
    const place = $(id);
    place.replaceChildren();
    if (!rows.length) return add(place, "div", "none", none);
    const cells = add(place, "table"), head = add(cells, "tr");
    columns.forEach(column => add(head, "th", "", column));
    for (const row of rows) {
      const line = add(cells, "tr");
      row.forEach((cell, number) => add(line, "td", columns[number] === "" ? "words" : "", cell));
    }
  };

  // Only where programs serve.
  const showPrograms = of => {
    $("programs").style.display = of ? "block" : "none";
    if (!of) return;
    const ends = of.ended_total;
    $("program_sums").textContent = `${of.running} run, ${of.ready} of them ready, ${size(of.resident_bytes)}. ${short(of.started_total)} started; ended: `
      + `${short(ends.died)} by themselves, ${short(ends.timed_out)} too late, ${short(ends.broke_framing)} for what they wrote, `
      + `${short(ends.replaced)} replaced, ${short(ends.surplus)} not needed.`;
    table("program_rows", ["program", "process", "age", "requests", "memory", "state"], of.rows.slice(0, 8).map(one => [one.number, one.pid, time(one.age_seconds), short(one.requests), size(one.resident_bytes), one.ready ? "ready" : "in use"]), "None runs.");
  };

  const tones = { serving: "green", draining: "orange", delaying: "orange", stopping: "red" };
  const show = (stats, connections) => {
    const now = seen[seen.length - 1];
    $("about").textContent = `${stats.version}, process ${stats.pid}, up for ${time(stats.uptime_seconds)}`;
    $("state").textContent = stats.state;
    $("state").style.setProperty("--tone", `var(--${stats.ready || stats.state !== "serving" ? tones[stats.state] || "orange" : "orange"})`);
    news(stats.ready ? "" : `Not ready: ${stats.reason}`);
    figure("rate", grouped(now.requests), `${short(total(stats.requests_total))} in all`);
    figure("connections", grouped(stats.connections), `${short(total(stats.connections_rejected_total))} rejected so far`);
    figure("workers", `${stats.pool_busy} of ${stats.pool_threads}`, `${stats.pool_min} to ${stats.pool_max}, ${stats.pool_cores} cores`);
    figure("demand", grouped(stats.pool_demand), `${Math.round(stats.pool_saturation * 100)} % of the max`);
    figure("waiting", grouped(stats.pool_waiting), `${short(stats.requests_pending)} pending`);
    figure("wait", now.wait99 == null ? "–" : time(now.wait99), now.wait50 == null ? "" : `p50 ${time(now.wait50)}`);
    figure("service", now.service99 == null ? "–" : time(now.service99), now.service50 == null ? "" : `p50 ${time(now.service50)}`);
    figure("held", size(stats.held_bytes), `${short(stats.requests_dropped_total)} dropped`);
    table("decisions", ["ago", ""], stats.decisions.slice(-8).reverse().map(one => [time(Math.max(0, stats.uptime_seconds - one.t)), one.words]), "The pool has kept its size.");
    table("stuck", ["worker", "runs for", "peer"], stats.stuck.map(one => [one.worker, time(one.age_seconds), one.peer || "gone"]), "No handler has run for a second.");
    showPrograms(stats.programs);
    table("most", ["peer", "service", "age", "state", "holds"], connections.map(one => [one.peer === "unix:" ? "Unix socket" : one.peer, one.service, time(one.age_seconds), one.state.replace("_", " "), size(one.held_bytes)]), "No connection is open.");
  };
  const news = text => { $("news").textContent = text; $("news").style.display = text ? "block" : "none"; };

  const load = async path => {
    const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE), cache: "no-store" });
    if (!answer.ok) throw new Error(`it answers ${answer.status}`);
    return answer.json();
  };
  let answered = Date.now();
  const look = async () => {
    const at = Date.now();
    try {
      const [stats, connections] = await Promise.all([load("stats.json"), load("connections.json?top=8")]);
      answered = Date.now();
      seen.push(entry(at, stats));
      show(stats, connections);
      document.body.dataset.pid = stats.pid;
    } catch (error) {
      seen.push({ at });
      $("state").textContent = "no answer";
      $("state").style.setProperty("--tone", "var(--red)");
      news(`No answer for ${time((Date.now() - answered) / 1000)}: ${error.message}. It is asked again each second.`);
    }
    if (seen.length > REMEMBERED) seen.shift();
    charts.forEach(draw);
    document.body.dataset.looks = seen.length;
    setTimeout(look, Math.max(0, at + EVERY - Date.now()));
  };
  addEventListener("resize", () => charts.forEach(draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(draw));
  look();
})();
