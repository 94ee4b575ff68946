"use strict";
// Charts answer to a pointer, to a finger and to the arrow keys, hide a series and save what they show. All of it is
// read off the page: the numbers are in the table under a chart, and where they stand on it is in its data-plot.
// Without this script the page says the same and stands still.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const SCALE = 3; // Pixels of a saved PNG to a unit of the drawing.
  const STEPS = {
    ArrowLeft: -1, ArrowUp: -1, PageUp: -10, Home: -Infinity,
    ArrowRight: 1, ArrowDown: 1, PageDown: 10, End: Infinity,
  };

  function element(tag, attributes = {}, ...content) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...content);
    return made;
  }

  function drawn(tag, attributes) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function button(text, label, press) {
    const made = element("button", { type: "button", "aria-label": label }, text);
    made.addEventListener("click", press);
    return made;
  }

  function save(name, blob) {
    const link = element("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  // A chart as a file: saved in the colours of the day on white, so that it looks the same wherever it is put.
  class Drawing {
    constructor(figure) {
      this.caption = figure.querySelector("figcaption").textContent.trim();
      this.frame = figure.querySelector(".plot");
      this.svg = this.frame.querySelector("svg");
      this.table = figure.querySelector("details table");
      this.box = this.svg.viewBox.baseVal;
      const kinds = { SVG: () => this.standalone(), PNG: () => this.pixels(), CSV: () => this.values() };
      if (!this.table) delete kinds.CSV;
      const tools = Object.entries(kinds).map(([kind, blob]) =>
        button(kind, `${kind}: save “${this.caption}”`, async () => save(this.file(kind), await blob())));
      this.frame.after(element("div", { class: "tools" }, ...tools));
    }

    file(kind) {
      const name = this.caption.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
      return `${name.slice(0, 60)}.${kind.toLowerCase()}`;
    }

    markup() {
      const copy = this.svg.cloneNode(true);
      copy.querySelector(".cursor")?.remove();
      copy.removeAttribute("data-plot");
      copy.setAttribute("width", this.box.width);
      copy.setAttribute("height", this.box.height);
      copy.prepend(drawn("rect", { width: "100%", height: "100%", fill: "#ffffff" }));
      const title = drawn("title", {});
      title.textContent = this.svg.getAttribute("aria-label");
      copy.prepend(title);
      return new XMLSerializer().serializeToString(copy).replace(/var\(--\w+,\s*(#\w+)\)/g, "$1");
    }

    standalone() {
      return new Blob([this.markup()], { type: "image/svg+xml" });
    }

    async pixels() {
      const image = new Image();
      image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(this.markup())}`;
      await image.decode();
      const canvas = element("canvas", { width: SCALE * this.box.width, height: SCALE * this.box.height });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      return new Promise((done) => canvas.toBlob(done, "image/png"));
    }

    values() {
      const quoted = (cell) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
      const rows = [...this.table.rows].map((row) => [...row.cells].map((cell) => quoted(cell.textContent)).join(","));
      return new Blob([rows.join("\n") + "\n"], { type: "text/csv" });
    }
  }

  // A chart that tells its numbers where a pointer is, and row by row to the arrow keys.
  class Chart extends Drawing {
    constructor(figure) {
      super(figure);
      const plot = JSON.parse(this.svg.dataset.plot);
      const [header, ...rows] = [...this.table.rows].map((row) => [...row.cells].map((cell) => cell.textContent));
      this.header = header;
      this.rows = rows;
      this.shares = new Set(plot.shares);
      this.weights = { x: [1, 0], y: [0, 1], xy: [1, 1] }[plot.nearest];
      this.series = plot.at.map((at, i) => ({ at, name: header[i + 1], colour: plot.colours[i], shown: true }));
      this.cursor = drawn("g", { class: "cursor" });
      this.svg.append(this.cursor);
      this.tip = element("div", { class: "tip", role: "status" });
      this.frame.append(this.tip);
      this.row = null;
      this.listen();
      const lines = this.svg.querySelectorAll("[data-series]");
      if (lines.length > 1 && lines.length === this.series.length) this.offer(figure, lines);
    }

    listen() {
      const label = `${this.caption} The arrow keys read its numbers.`;
      for (const [name, value] of Object.entries({ tabindex: "0", role: "application", "aria-label": label })) {
        this.frame.setAttribute(name, value);
      }
      for (const kind of ["pointermove", "pointerdown"]) this.frame.addEventListener(kind, (e) => this.point(e));
      // A finger that is lifted leaves as well; what it asked for stays until the reader turns elsewhere.
      this.frame.addEventListener("pointerleave", (e) => e.pointerType === "mouse" && this.show(null));
      this.frame.addEventListener("blur", () => this.show(null));
      this.frame.addEventListener("keydown", (e) => this.press(e));
    }

    // One button a series, in place of the legend in the drawing, which cannot be pressed.
    offer(figure, lines) {
      const buttons = this.series.map((series, i) => {
        const line = lines[i];
        const sample = drawn("svg", { viewBox: "0 0 24 8", width: 24, height: 8, "aria-hidden": "true" });
        sample.append(drawn("path", { d: "M0 4H24", style: line.querySelector("path").getAttribute("style") }));
        const made = element("button", { type: "button", "aria-pressed": "true" }, sample, series.name);
        made.addEventListener("click", () => {
          series.shown = !series.shown;
          line.style.display = series.shown ? "" : "none";
          made.setAttribute("aria-pressed", series.shown);
          this.show(null);
        });
        return made;
      });
      this.frame.before(element("div", { class: "legend", role: "group", "aria-label": "Series" }, ...buttons));
      figure.classList.add("offered");
    }

    point(event) {
      const seen = this.svg.getBoundingClientRect();
      const x = ((event.clientX - seen.left) / seen.width) * this.box.width;
      const y = ((event.clientY - seen.top) / seen.height) * this.box.height;
      const [across, up] = this.weights;
      let [best, nearest] = [Infinity, null];
      for (const { at, shown } of this.series) {
        at.forEach((place, row) => {
          if (!shown || !place) return;
          const distance = across * (place[0] - x) ** 2 + up * (place[1] - y) ** 2;
          if (distance < best) [best, nearest] = [distance, row];
        });
      }
      this.show(nearest);
    }

    press(event) {
      if (event.key === "Escape") this.show(null);
      const step = STEPS[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const seen = [...this.rows.keys()].filter((row) => this.told(row).length);
      const next = this.row === null ? (step < 0 ? seen.length - 1 : 0) : seen.indexOf(this.row) + step;
      this.show(seen[Math.min(Math.max(next, 0), seen.length - 1)] ?? null);
    }

    told(row) {
      return this.series.filter(({ at, shown }) => shown && at[row]);
    }

    cell(row, column) {
      const text = this.rows[row][column];
      return this.shares.has(column) ? `${Number((100 * text).toPrecision(4))}\u00a0%` : text;
    }

    show(row) {
      this.row = row;
      const told = row === null ? [] : this.told(row);
      this.cursor.replaceChildren(...told.map(({ at, colour }) => drawn("circle", {
        cx: at[row][0], cy: at[row][1], r: 4, fill: `var(--${colour})`, stroke: "var(--card)", "stroke-width": 1.5,
      })));
      this.tip.replaceChildren();
      if (!told.length) return;
      const lines = told.map((series) => {
        const dot = element("i", { style: `background: var(--${series.colour})` });
        const value = element("b", {}, this.cell(row, this.series.indexOf(series) + 1));
        return element("span", {}, dot, `${series.name} `, value, " ");
      });
      const name = this.header[0] === "name" ? "" : `${this.header[0]} `;
      this.tip.append(element("span", {}, `${name}${this.cell(row, 0)}: `), ...lines);
      this.place(told[0].at[row]);
    }

    // Beside the point and above it, or on the other side where there is no room.
    place([x, y]) {
      const scale = this.svg.getBoundingClientRect().width / this.box.width;
      this.tip.style.left = "0"; // Near the edge it would be measured with its lines broken.
      const [left, top, room] = [x * scale, y * scale, this.frame.clientWidth];
      const beside = left + 12 + this.tip.offsetWidth <= room ? left + 12 : left - 12 - this.tip.offsetWidth;
      this.tip.style.left = `${Math.max(0, Math.min(beside, room - this.tip.offsetWidth))}px`;
      const above = top - 8 - this.tip.offsetHeight;
      this.tip.style.top = `${above >= 0 ? above : top + 8}px`;
    }
  }

  for (const figure of document.querySelectorAll("figure.chart")) {
    const kind = figure.querySelector("svg[data-plot]") ? Chart : Drawing;
    new kind(figure);
  }
})();
