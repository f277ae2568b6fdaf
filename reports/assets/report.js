// Draws the charts of an effprof HTML report from the JSON in the page. Text from a log reaches the page only as
// text nodes: no string is ever parsed as HTML.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const live = document.getElementById("live");
  const drawn = new Map();

  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const isNarrow = () => root.clientWidth < 620;

  // ---- numbers as people read them -------------------------------------------------------------------------------
  const trim = (value, digits = 3) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en-US");
    return Number(value.toPrecision(digits)).toString();
  };
  const duration = (s) => {
    if (s === null || s === undefined) return "–";
    if (s < 0) return `−${duration(-s)}`;
    if (s >= 86400) return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
    if (s >= 3600) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
    if (s >= 60) return `${Math.floor(s / 60)} min ${String(Math.floor(s % 60)).padStart(2, "0")} s`;
    if (s >= 1 || s === 0) return `${trim(s)} s`;
    return s >= 1e-3 ? `${trim(s * 1e3)} ms` : `${trim(s * 1e6)} µs`;
  };
  const tick = (s) => {
    if (s >= 3600) return `${trim(s / 3600)} h`;
    return s >= 120 ? `${trim(s / 60)} min` : `${trim(s)} s`;
  };
  const scaled = (value, step, names) => {
    let at = 0;
    while (Math.abs(value) >= step && at < names.length - 1) { value /= step; at += 1; }
    return `${trim(value)} ${names[at]}`;
  };
  const BYTES = ["B", "KiB", "MiB", "GiB", "TiB"];
  const amount = (value, unit) => {
    if (value === null || value === undefined) return "–";
    if (unit === "s") return duration(value);
    if (unit === "share") return `${trim(value * 100)} %`;
    if (unit === "bytes") return scaled(value, 1024, BYTES);
    if (unit === "bytes/s") return scaled(value, 1024, BYTES.map((name) => `${name}/s`));
    if (unit === "×") return `${trim(value)} ×`;
    return `${trim(value)}${unit ? ` ${unit}` : ""}`;
  };

  // ---- tooltips: elements made by hand, never HTML made from strings ------------------------------------------------
  const element = (tag, text, style) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    Object.assign(made.style, style || {});
    return made;
  };
  const tip = (title, rows) => {
    const box = element("div");
    box.className = "tip";
    box.append(element("b", title));
    for (const [name, value, color] of rows) {
      const row = element("span");
      const label = element("em", undefined, { fontStyle: "normal" });
      if (color) label.append(element("i", "", { background: color }));
      label.append(name);
      row.append(label, element("strong", value));
      box.append(row);
    }
    return box;
  };

  // ---- what all charts share ---------------------------------------------------------------------------------------
  const common = () => ({
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: css("--soft") },
    tooltip: {
      confine: true,
      transitionDuration: calm.matches ? 0 : 0.15,
      backgroundColor: css("--card"),
      borderColor: css("--line"),
      textStyle: { color: css("--text") },
      extraCssText: "box-shadow:0 4px 16px rgba(0,0,0,.18)",
    },
  });
  const axis = (more) => ({
    axisLine: { lineStyle: { color: css("--line") } },
    axisTick: { show: false },
    axisLabel: { color: css("--soft"), hideOverlap: true, ...(more.axisLabel || {}) },
    splitLine: { lineStyle: { color: css("--grid") } },
    ...Object.fromEntries(Object.entries(more).filter(([key]) => key !== "axisLabel")),
  });
  // elapsed seconds as a time axis from the epoch, because its ticks fall on whole minutes and hours
  const timeAxis = (spans) => axis({
    type: "time",
    min: spans[0] * 1e3,
    max: spans[1] * 1e3,
    splitLine: { show: false },
    splitNumber: isNarrow() ? 3 : 6,
    axisLabel: { formatter: (ms) => tick(ms / 1e3) },
  });
  // units of no scale of their own stand beside the title
  const onAxis = (value, unit) => (["s", "share", "bytes", "bytes/s", "×"].includes(unit) ? amount(value, unit) : trim(value));
  const valueAxis = (unit, more) => axis({
    type: "value", splitNumber: 4, axisLabel: { formatter: (value) => onAxis(value, unit) }, ...more,
  });
  // the end of a scale, on a number that is easy to read
  const top = (value) => {
    if (!value) return {};
    const size = 10 ** Math.floor(Math.log10(value));
    const [max, parts] = [[1, 4], [1.5, 3], [2, 4], [3, 3], [4, 4], [5, 5], [6, 3], [8, 4], [10, 4]].find(([n]) => n * size >= value);
    return { max: max * size, interval: (max * size) / parts };
  };
  const binary = (most) => {
    const size = 1024 ** Math.max(0, Math.floor(Math.log(most) / Math.log(1024)));
    const { max, interval } = top((most * 1.05) / size);
    return { max: max * size, interval: interval * size };
  };
  const place = (more) => ({ left: 8, right: 14, top: 14, bottom: 6, containLabel: true, ...more });
  // one width of labels for all charts over time, so that their time axes lie below each other
  const overTime = (more) => ({ left: 68, right: 12, top: 12, bottom: 24, ...more });
  const breaks = (series, i) => i > 0 && series.attempt && series.attempt[i] !== series.attempt[i - 1];
  const points = (at, values, series) => at.flatMap((s, i) => (
    breaks(series, i) ? [[(at[i - 1] + s) * 500, null], [s * 1e3, values[i]]] : [[s * 1e3, values[i]]]
  ));
  const nearest = (at, ms) => {
    let best = 0;
    for (let i = 1; i < at.length; i += 1) if (Math.abs(at[i] * 1e3 - ms) < Math.abs(at[best] * 1e3 - ms)) best = i;
    return best;
  };
  const line = (name, color, values, more) => ({
    name, type: "line", data: values, showSymbol: values.length < 3, symbolSize: 5, connectNulls: false,
    itemStyle: { color }, lineStyle: { color, width: 1.8 }, emphasis: { disabled: true }, ...more,
  });
  // lowest to highest as a shade: a clear line at the lowest, and what the highest adds stacked on it
  const shade = (name, color, series, stack) => [
    line(`${name} low`, color, points(series.at, series.low, series), {
      stack, stackStrategy: "all", lineStyle: { opacity: 0 }, showSymbol: false, silent: true, z: 1,
    }),
    line(`${name} high`, color, points(series.at, series.high.map((v, i) => (v === null ? null : v - series.low[i])), series), {
      stack, stackStrategy: "all", lineStyle: { opacity: 0 }, showSymbol: false, silent: true, z: 1,
      areaStyle: { color, opacity: 0.22 },
    }),
  ];

  const COLORS = {
    forward: "--c-forward", backward: "--c-backward", optimizer: "--c-optimizer", input_wait: "--c-input",
    host_to_device: "--c-copy", generation: "--c-generation", other: "--c-other", startup: "--c-startup",
    compile: "--c-lost", evaluation: "--c-evaluation", checkpoint: "--c-checkpoint", throttling: "--c-input",
    warning: "--c-optimizer", attempt: "--soft", ended: "--bad",
  };
  const SERIES = ["--c-forward", "--c-communication", "--c-backward", "--c-copy", "--c-optimizer", "--c-input",
    "--c-generation", "--c-other"];
  const words = (name) => name.replaceAll("_", " ");

  const marks = (events) => {
    const lasting = events.filter((event) => event.until !== null);
    const moments = events.filter((event) => event.until === null);
    return {
      markArea: {
        silent: true,
        data: lasting.map((event) => [
          { xAxis: event.at * 1e3, itemStyle: { color: css(COLORS[event.kind] || "--c-other"), opacity: 0.28 } },
          { xAxis: event.until * 1e3 },
        ]),
      },
      markLine: {
        silent: true, symbol: "none", label: { show: false },
        data: moments.map((event) => ({
          xAxis: event.at * 1e3,
          lineStyle: { color: css(COLORS[event.kind] || "--c-other"), width: 1.2, type: event.kind === "warning" ? "dotted" : "dashed" },
        })),
      },
    };
  };

  // ---- the charts, by the name in data-chart -------------------------------------------------------------------------
  const charts = {
    waterfall(chart) {
      const bars = chart.bars;
      const narrow = isNarrow();
      const color = (bar) => css(bar.kind === "total" ? "--accent" : bar.kind === "result" ? "--c-backward" : "--c-input");
      return {
        height: bars.length * (narrow ? 36 : 30) + 34,
        option: {
          ...common(),
          grid: place({ right: narrow ? 46 : 64, top: 4 }),
          xAxis: valueAxis("share", { min: 0, max: 1, interval: narrow ? 0.5 : 0.2 }),
          yAxis: axis({
            type: "category", inverse: true, data: bars.map((bar) => bar.name), splitLine: { show: false },
            axisLabel: { color: css("--text"), width: narrow ? 104 : 240, overflow: narrow ? "break" : "truncate", interval: 0, lineHeight: narrow ? 13 : undefined, fontSize: narrow ? 11 : 12 },
          }),
          series: [
            { type: "bar", stack: "bar", silent: true, itemStyle: { color: "transparent" }, data: bars.map((bar) => bar.from), barWidth: "62%" },
            {
              type: "bar", stack: "bar",
              data: bars.map((bar) => ({ value: bar.size, itemStyle: { color: color(bar), borderRadius: 3 } })),
              label: { show: true, position: "right", color: css("--text"), formatter: (p) => bars[p.dataIndex].text },
            },
          ],
          tooltip: {
            ...common().tooltip, trigger: "axis", axisPointer: { type: "shadow" },
            formatter: (hit) => tip(bars[hit[0].dataIndex].name, bars[hit[0].dataIndex].rows),
          },
        },
        count: bars.length,
        say: (i) => `${bars[i].name}: ${bars[i].text}`,
      };
    },

    band(chart) {
      const series = chart.series;
      const color = css(chart.color);
      const rows = (i) => [
        ["median", amount(series.median[i], chart.unit), color],
        ...(series.low ? [["lowest", amount(series.low[i], chart.unit)], ["highest", amount(series.high[i], chart.unit)]] : []),
      ];
      const title = (i) => {
        const first = series.first_step[i], last = series.last_step[i];
        return `${first === last ? `step ${first}` : `steps ${first} – ${last}`} · at ${duration(series.at[i])}`;
      };
      return {
        option: {
          ...common(),
          useUTC: true,
          grid: overTime({ bottom: chart.zoom ? 60 : 24 }),
          xAxis: timeAxis(chart.span),
          yAxis: valueAxis(chart.unit, { scale: !chart.fromZero, min: chart.fromZero ? 0 : undefined, ...top(chart.top) }),
          series: [
            ...(series.low ? shade(chart.name, color, series, "band") : []),
            line(chart.name, color, points(series.at, series.median, series), { z: 3, ...marks(chart.events || []) }),
          ],
          tooltip: {
            ...common().tooltip, trigger: "axis",
            formatter: (hit) => { const i = nearest(series.at, hit[0].axisValue); return tip(title(i), rows(i)); },
          },
          dataZoom: zoom(chart.zoom),
        },
        count: series.at.length,
        x: (i) => series.at[i] * 1e3,
        say: (i) => `${title(i)}: ${rows(i).map(([name, value]) => `${name} ${value}`).join(", ")}`,
      };
    },

    phases(chart) {
      const names = Object.keys(chart.phases);
      const rows = (i) => names.map((name) => [words(name), amount(chart.phases[name][i], "s"), css(COLORS[name])]).reverse();
      return {
        option: {
          ...common(),
          useUTC: true,
          grid: overTime(),
          xAxis: timeAxis(chart.span),
          yAxis: valueAxis("s", top(chart.top)),
          series: names.map((name) => line(words(name), css(COLORS[name]), points(chart.at, chart.phases[name], chart), {
            stack: "phases", showSymbol: false, lineStyle: { width: 0 }, areaStyle: { color: css(COLORS[name]), opacity: 0.85 },
          })),
          tooltip: {
            ...common().tooltip, trigger: "axis",
            formatter: (hit) => { const i = nearest(chart.at, hit[0].axisValue); return tip(`at ${duration(chart.at[i])}`, rows(i)); },
          },
          dataZoom: zoom(false),
        },
        count: chart.at.length,
        x: (i) => chart.at[i] * 1e3,
        say: (i) => `at ${duration(chart.at[i])}: ${rows(i).map(([name, value]) => `${name} ${value}`).join(", ")}`,
      };
    },

    lines(chart) {
      const longest = chart.series.reduce((a, b) => (b.at.length > a.at.length ? b : a));
      const color = (i) => css(SERIES[i % SERIES.length]);
      const most = chart.series.reduce((found, series) => Math.max(found, ...(series.high || series.median)), 0);
      const scale = chart.limit ? { max: chart.limit, interval: chart.limit / 4 }
        : chart.fromZero && chart.unit.startsWith("bytes") && most > 0 ? binary(most) : {};
      const shown = (series, ms) => amount(series.median[nearest(series.at, ms)], chart.unit);
      const rows = (ms) => chart.series.map((series, i) => [series.name, shown(series, ms), color(i)]);
      return {
        option: {
          ...common(),
          useUTC: true,
          grid: overTime(),
          xAxis: timeAxis(chart.span),
          yAxis: valueAxis(chart.unit, { splitNumber: chart.small ? 2 : 4, scale: !chart.fromZero, min: chart.fromZero ? 0 : undefined, ...scale }),
          series: chart.series.flatMap((series, i) => [
            ...(series.low ? shade(series.name, color(i), series, `band ${i}`) : []),
            line(series.name, color(i), points(series.at, series.median, series), { z: 3 }),
          ]),
          tooltip: {
            ...common().tooltip, trigger: "axis",
            formatter: (hit) => tip(`at ${duration(hit[0].axisValue / 1e3)}`, rows(hit[0].axisValue)),
          },
          dataZoom: zoom(false),
        },
        count: longest.at.length,
        x: (i) => longest.at[i] * 1e3,
        say: (i) => `at ${duration(longest.at[i])}: ${rows(longest.at[i] * 1e3).map(([name, value]) => `${name} ${value}`).join(", ")}`,
      };
    },

    heat(chart) {
      const grid = chart.metrics ? chart.metrics[chart.metric] : chart.cells;
      // loads lie on a scale of doublings around the mean: half of it is as far from even as twice of it
      const diverges = chart.center !== undefined;
      const onScale = (value) => (diverges ? Math.log2(Math.max(value, 1e-9) / chart.center) : value);
      const cells = grid.flatMap((row, y) => row.map((value, x) => [x, y, value])).filter((cell) => cell[2] !== null);
      const values = cells.map((cell) => onScale(cell[2]));
      let low = values[0], high = values[0];
      for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
      // a few outliers must not make all other cells look the same
      if (chart.clip) high = [...values].sort((a, b) => a - b)[Math.floor(chart.clip * (values.length - 1))];
      // the busiest sets the scale, because the others wait for it
      if (diverges) { high = Math.max(high, 0.5); low = -high; }
      if (high <= low) high = low + 1e-9;
      const shown = (value) => amount(diverges ? chart.center * 2 ** value : value, chart.unit);
      const colors = diverges ? ["--heat-low", "--heat-mid", "--heat-high"] : ["--seq-0", "--seq-1", "--seq-2"];
      const rows = (cell) => [[chart.valueName || words(chart.metric), amount(cell[2], chart.unit)], ...(chart.extra ? [[chart.extra.name, amount(chart.extra.cells[cell[1]][cell[0]], chart.extra.unit)]] : [])];
      const title = (cell) => `${chart.rows[cell[1]]} · ${(chart.columnTitles || chart.columns)[cell[0]]}`;
      return {
        renderer: "canvas",
        height: Math.max(180, Math.min(720, 84 + grid.length * (grid.length > 64 ? 6 : 22))),
        option: {
          ...common(),
          grid: place({ bottom: 46, top: 6 }),
          xAxis: axis({ type: "category", data: chart.columns, splitLine: { show: false }, name: chart.columnsName, nameLocation: "middle", nameGap: 24, nameTextStyle: { color: css("--soft") } }),
          yAxis: axis({
            type: "category", data: chart.rows, inverse: true, splitLine: { show: false },
            axisLabel: { width: isNarrow() ? 84 : 190, overflow: "truncate" },
          }),
          visualMap: {
            type: "continuous", calculable: false, orient: "horizontal", left: "center", bottom: -4, itemHeight: isNarrow() ? 110 : 180, itemWidth: 12,
            min: low, max: high, dimension: 2,
            text: [`${chart.clip ? "≥ " : ""}${shown(high)}`, `${diverges ? "≤ " : ""}${shown(low)}`],
            textStyle: { color: css("--soft") }, inRange: { color: colors.map(css) },
          },
          series: [{
            type: "heatmap", data: cells.map(([x, y, value]) => [x, y, onScale(value)]), progressive: 0,
            itemStyle: cells.length < 3000 ? { borderColor: css("--card"), borderWidth: 1 } : {},
            emphasis: { itemStyle: { borderColor: css("--text"), borderWidth: 1.5 } },
          }],
          tooltip: { ...common().tooltip, trigger: "item", formatter: (hit) => tip(title(cells[hit.dataIndex]), rows(cells[hit.dataIndex])) },
        },
        count: cells.length,
        series: 0,
        say: (i) => `${title(cells[i])}: ${rows(cells[i]).map(([name, value]) => `${name} ${value}`).join(", ")}`,
      };
    },
  };

  const zoom = (isShown) => [
    { type: "inside", zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false, moveOnMouseMove: false, preventDefaultMouseMove: false, filterMode: "none" },
    ...(isShown ? [{
      type: "slider", height: 22, bottom: 8, filterMode: "none", borderColor: css("--line"), backgroundColor: "transparent",
      fillerColor: css("--accent-soft"), handleStyle: { color: css("--accent") }, moveHandleSize: 0, showDetail: false,
      dataBackground: { lineStyle: { color: css("--line") }, areaStyle: { color: css("--grid") } },
      selectedDataBackground: { lineStyle: { color: css("--accent") }, areaStyle: { color: css("--accent-soft") } },
      brushSelect: false,
    }] : []),
  ];

  // ---- drawing, and drawing again when the theme, the width or a choice changes --------------------------------------
  const draw = (box) => {
    const chart = data.charts[box.dataset.chart];
    const made = charts[chart.type](chart);
    const before = drawn.get(box);
    const zoomed = before && before.instance.getOption().dataZoom;
    if (before) before.instance.dispose();
    if (made.height) box.style.height = `${made.height}px`;
    const instance = echarts.init(box, null, { renderer: made.renderer || "svg" });
    if (made.option.dataZoom && zoomed && zoomed[0]) {
      for (const one of made.option.dataZoom) { one.start = zoomed[0].start; one.end = zoomed[0].end; }
    }
    instance.setOption(made.option);
    if (chart.group) instance.group = chart.group;
    drawn.set(box, { instance, made, at: before ? before.at : -1 });
  };

  const failed = (box, error) => {
    box.textContent = "This chart could not be drawn; its numbers are in the table below.";
    box.classList.add("empty");
    console.error(error);
  };

  const drawAll = () => {
    for (const box of document.querySelectorAll("[data-chart]")) {
      try { draw(box); } catch (error) { failed(box, error); }
    }
    for (const group of new Set(Object.values(data.charts).map((chart) => chart.group).filter(Boolean))) echarts.connect(group);
  };

  // arrow keys walk through the points of the chart that has the focus, and each is read out
  const walk = (box, event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 20, PageUp: -20 }[event.key];
    const state = drawn.get(box);
    if (!state || (step === undefined && !["Home", "End", "Escape"].includes(event.key))) return;
    event.preventDefault();
    if (event.key === "Escape") { state.instance.dispatchAction({ type: "hideTip" }); return; }
    const last = state.made.count - 1;
    const target = event.key === "Home" ? 0 : event.key === "End" ? last : state.at + step;
    state.at = Math.max(0, Math.min(last, target));
    const series = state.made.series ?? state.instance.getOption().series.length - 1;
    if (state.made.x) {
      const x = state.instance.convertToPixel({ xAxisIndex: 0 }, state.made.x(state.at));
      state.instance.dispatchAction({ type: "showTip", x, y: box.clientHeight / 2 });
    } else {
      state.instance.dispatchAction({ type: "showTip", seriesIndex: series, dataIndex: state.at });
    }
    live.textContent = state.made.say(state.at);
  };

  for (const box of document.querySelectorAll("[data-chart]")) {
    box.addEventListener("keydown", (event) => walk(box, event));
    box.addEventListener("blur", () => { const state = drawn.get(box); if (state) state.instance.dispatchAction({ type: "hideTip" }); });
  }
  for (const choice of document.querySelectorAll("select[data-for]")) {
    choice.addEventListener("change", () => {
      data.charts[choice.dataset.for].metric = choice.value;
      draw(document.querySelector(`[data-chart="${choice.dataset.for}"]`));
    });
  }

  const button = document.getElementById("theme");
  const stored = () => { try { return localStorage.getItem("effprof-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : wantsDark.matches);
  const setTheme = (theme) => {
    if (theme) root.dataset.theme = theme;
    button.textContent = isDark() ? "Light theme" : "Dark theme";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("effprof-theme", theme); } catch { /* a file opened from disk may have no storage */ }
    setTheme(theme);
    drawAll();
  });
  wantsDark.addEventListener("change", () => { setTheme(root.dataset.theme); drawAll(); });
  setTheme(["dark", "light"].includes(stored()) ? stored() : undefined);

  let width = root.clientWidth;
  let waiting = 0;
  addEventListener("resize", () => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 120);
  });
  drawAll();
  root.dataset.drawn = "yes";
})();
