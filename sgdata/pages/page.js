"use strict";
// The page's behaviour: charts, maps with exact values, sample filters. No request leaves the folder.
const sg = (() => {
  const LRU = 64, waiting = new Map(), held = new Map();

  // --- pieces: see sgdata/show/pieces.py for the format --------------------------------------------------------
  function piece(root, name) {
    const path = `${root}/${name}`, known = held.get(path);
    held.delete(path);
    const promise = known ?? new Promise((done, failed) => {
      const script = document.createElement("script");
      waiting.set(path, done);
      script.onload = () => script.remove();
      script.onerror = () => { held.delete(path); failed(new Error(`${path} is missing`)); };
      script.src = `${path}.js`;
      document.head.append(script);
    });
    held.set(path, promise);  // last in order: the first are the longest unused
    if (held.size > LRU) held.delete(held.keys().next().value);
    return promise;
  }

  async function put(name, [planes, height, width, size], text) {
    const bytes = new Uint8Array(size + 2), area = height * width;
    for (let i = 0, n = 0, bits = 0, word = 0; i < text.length; i++) {
      word = word << 15 | text.charCodeAt(i) - 0x2a00;
      for (bits += 15; bits >= 8;) bytes[n++] = word >> (bits -= 8);
      word &= (1 << bits) - 1;
    }
    const packed = new Blob([bytes.subarray(0, size)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const raw = new Uint8Array(await new Response(packed).arrayBuffer());
    const out = Array.from({ length: planes }, (_, plane) => {
      const values = new Uint16Array(area);
      for (let y = 0, i = 0, k = plane * area; y < height; y++) for (let x = 0; x < width; x++, i++, k++) {
        const left = x ? values[i - 1] : 0, up = y ? values[i - width] : 0, corner = x && y ? values[i - width - 1] : 0;
        const low = Math.min(left, up), high = Math.max(left, up), folded = raw[k] << 8 | raw[k + planes * area];
        values[i] = Math.min(high, Math.max(low, left + up - corner)) + (folded >>> 1 ^ -(folded & 1));
      }
      return values;
    });
    waiting.get(name)({ planes: out, height, width });
    waiting.delete(name);
  }

  // --- charts --------------------------------------------------------------------------------------------------
  async function chart(box) {
    const item = JSON.parse(document.getElementById(`${box.id}-data`).textContent);
    const shown = await Bokeh.embed.embed_item({ ...item, target_id: box.id });
    return shown.roots[0].model;
  }

  // --- maps ----------------------------------------------------------------------------------------------------
  function element(tag, text) { const made = document.createElement(tag); made.textContent = text; return made; }

  function table(spec, layer) {
    const colours = new Uint32Array(65536);  // 0 is clear: what has no colour does not hide what lies below
    const rgba = (text) => 0xff000000 | parseInt(text.slice(5, 7) + text.slice(3, 5) + text.slice(1, 3), 16);
    for (const [value, colour] of Object.entries(layer.colours ?? {})) colours[value] = rgba(colour);
    if (layer.ramp) {
      const [low, high, ...stops] = layer.ramp;
      for (let value = low; value <= high; value++) {
        const at = (value - low) / Math.max(1, high - low) * (stops.length - 1), k = Math.min(stops.length - 2, at | 0);
        const part = (from) => Math.round(parseInt(stops[k].slice(from, from + 2), 16) * (k + 1 - at)
          + parseInt(stops[k + 1].slice(from, from + 2), 16) * (at - k));
        colours[value] = 0xff000000 | part(5) << 16 | part(3) << 8 | part(1);
      }
    }
    return colours;
  }

  async function map(root) {
    const spec = JSON.parse(root.querySelector("script.spec").textContent), [rows, cols] = spec.shape, tile = spec.tile;
    const view = root.querySelector(".view"), figure = await chart(view), ranges = [figure.x_range, figure.y_range];
    const spectrum = (await chart(root.querySelector(".spectrum"))).document.get_model_by_name("spectrum");
    const named = (name) => figure.renderers.filter((renderer) => renderer.name === name);
    const tables = new Map(spec.layers.map((layer) => [layer.name, table(spec, layer)]));
    const limits = new Map(spec.bands.map((band) => [band.name, band]));
    const control = (name) => root.querySelector(`[name="${name}"]`);
    const drawn = new Map(), cursor = { row: rows >> 1, col: cols >> 1 };
    let detail = [];

    async function overview(name) {
      const found = await piece(spec.values, `o-${name}`);
      return { ...found, values: found.planes[0] };
    }
    async function tiled(name, row, col) {
      const found = await piece(spec.values, `t-${row}-${col}`);
      return { ...found, values: found.planes[spec.planes.indexOf(name)] };
    }
    function coloured(layer, planes) {
      const { height, width } = planes[0], out = new Uint32Array(height * width);
      if (layer.name !== "image") {
        const colours = tables.get(layer.name);
        for (let i = 0; i < out.length; i++) out[i] = colours[planes[0].values[i]];
        return out;
      }
      const [red, green, blue] = planes.map((plane, k) => {
        const { low, high } = limits.get(control(`band-${k}`).value), factor = 255 / Math.max(1, high - low);
        return { values: plane.values, shade: (value) => Math.max(0, Math.min(255, (value - low) * factor)) };
      });
      for (let i = 0; i < out.length; i++) {
        const r = red.values[i], g = green.values[i], b = blue.values[i];
        if (r | g | b) out[i] = 0xff000000 | blue.shade(b) << 16 | green.shade(g) << 8 | red.shade(r);
      }
      return out;
    }
    async function draw(layer) {
      const wanted = layer.name === "image" ? [0, 1, 2].map((k) => control(`band-${k}`).value) : [layer.plane];
      const [renderer] = named(layer.name), box = control(`show-${layer.name}`), slider = control(`opacity-${layer.name}`);
      renderer.visible = box.checked;
      renderer.glyph.global_alpha = { value: slider.value / 100 };
      const state = JSON.stringify([wanted, detail]);
      if (!box.checked || drawn.get(layer.name) === state) return;
      drawn.set(layer.name, state);
      const parts = [Promise.all(wanted.map(overview)), ...detail.map(([row, col]) => Promise.all(wanted.map((name) => tiled(name, row, col))))];
      const found = await Promise.all(parts);
      if (drawn.get(layer.name) !== state) return;  // the user went on while it was loading
      const source = renderer.data_source, Image = source.data.image[0].constructor;
      const data = { image: [], x: [], y: [], dw: [], dh: [] };
      found.forEach((planes, k) => {
        const { height, width } = planes[0], [row, col] = k ? detail[k - 1] : [0, 0], size = k ? 1 : spec.step;
        data.image.push(new Image(coloured(layer, planes), [height, width]));
        data.x.push(col * tile); data.y.push(row * tile); data.dw.push(width * size); data.dh.push(height * size);
      });
      source.data = data;
    }
    const redraw = () => Promise.all(spec.layers.map(draw));

    // Where one value of the overview covers several pixels of the screen, the tiles in sight take its place.
    function sharpen() {
      const [x, y] = ranges, wide = Math.abs(x.end - x.start), wanted = [];
      if (spec.step > 1 && wide / view.clientWidth < spec.step / 1.5) {
        const [left, right] = [x.start, x.end].map((v) => Math.floor(Math.max(0, Math.min(cols - 1, v)) / tile));
        const [top, bottom] = [y.end, y.start].map((v) => Math.floor(Math.max(0, Math.min(rows - 1, v)) / tile));
        for (let row = top; row <= bottom; row++) for (let col = left; col <= right; col++) wanted.push([row, col]);
      }
      detail = wanted.length <= LRU / 2 ? wanted : [];
      return redraw();
    }
    let timer;
    for (const range of ranges) range.change.connect(() => { clearTimeout(timer); timer = setTimeout(sharpen, 150); });

    function zoom(factor) {
      const middle = [cursor.col + .5, cursor.row + .5];
      ranges.forEach((range, k) => {
        const [start, end] = factor ? [range.start, range.end].map((v) => middle[k] + (v - middle[k]) * factor) : k ? [rows, 0] : [0, cols];
        range.setv({ start, end });
      });
    }
    function follow() {  // a cursor that left the view takes it along
      ranges.forEach((range, k) => {
        const at = k ? cursor.row + .5 : cursor.col + .5, low = Math.min(range.start, range.end), high = Math.max(range.start, range.end);
        const by = at < low ? at - low - (high - low) / 4 : at > high ? at - high + (high - low) / 4 : 0;
        if (by) range.setv({ start: range.start + by, end: range.end + by });
      });
    }

    async function pick(row, col) {
      cursor.row = Math.max(0, Math.min(rows - 1, row));
      cursor.col = Math.max(0, Math.min(cols - 1, col));
      for (const mark of named("cursor")) mark.data_source.data = { x: [cursor.col + .5], y: [cursor.row + .5] };
      follow();
      const here = { row: cursor.row, col: cursor.col };
      const got = await Promise.all(spec.planes.map((name) => spec.step > 1
        ? tiled(name, here.row / tile | 0, here.col / tile | 0) : overview(name)));
      if (here.row !== cursor.row || here.col !== cursor.col) return;
      const value = Object.fromEntries(got.map((plane, k) => {
        const [y, x] = spec.step > 1 ? [here.row % tile, here.col % tile] : [here.row, here.col];
        return [spec.planes[k], plane.values[y * plane.width + x]];
      }));
      tell(here, value);
    }
    function tell({ row, col }, value) {
      const valid = spec.bands.filter((band) => value[band.name] !== spec.nodata);
      const reflectance = (band) => (value[band.name] + spec.offset) * spec.scale;
      spectrum.data = { x: valid.map((band) => band.wavelength), y: valid.map(reflectance) };
      const lines = [["row, column", `${row}, ${col}`],
        [spec.crs, spec.origin.map((from, k) => Math.round(from + (k ? -row - .5 : col + .5) * spec.gsd)).join(", ")]];
      for (const layer of spec.layers.filter((layer) => layer.plane)) {
        const number = value[layer.plane], plain = layer.scale ? (number * layer.scale).toFixed(4) : String(number);
        let text = layer.names?.[number] ?? (number === layer.missing ? "none" : plain);
        if (layer.day && number !== layer.missing) text = new Date(number * 864e5).toISOString().slice(0, 10);
        lines.push([layer.title, text]);
      }
      const inside = spec.patches.filter(([top, left, height, width]) =>
        row >= top && row < top + height && col >= left && col < left + width).map((patch) => patch[4]);
      lines.push(["patches here", inside.length ? `${inside.length} (${[...new Set(inside)].join(", ")})` : "none"]);
      root.querySelector(".pixel-values").replaceChildren(...lines.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
      root.querySelector(".values tbody").replaceChildren(...spec.bands.map((band) => {
        const line = document.createElement("tr"), empty = value[band.name] === spec.nodata;
        line.append(element("th", band.name), element("td", value[band.name]), element("td", empty ? "no data" : reflectance(band).toFixed(4)));
        return line;
      }));
      root.dataset.picked = `${row},${col}`;
    }

    // Not Bokeh's own tap: it takes a second one soon after for a double one, wherever it was.
    let down = [0, 0];  // to fractions of a pixel of the screen, which a click rounds off
    view.addEventListener("click", ({ clientX, clientY }) => {
      if (Math.hypot(clientX - down[0], clientY - down[1]) > 4) return;  // the end of a drag
      const box = view.getBoundingClientRect(), at = [(down[0] - box.left) / box.width, (down[1] - box.top) / box.height];
      const [col, row] = ranges.map(({ start, end }, k) => Math.floor((k ? end : start) + at[k] * Math.abs(end - start)));
      pick(row, col);
    }, true);  // before Bokeh, which keeps its events to itself
    root.addEventListener("input", ({ target }) => {
      if (target.name === "preset" && target.value) target.value.split(" ").forEach((band, k) => { control(`band-${k}`).value = band; });
      if (target.name.startsWith("band-")) control("preset").value = "";
      if (target.name === "show-patches") for (const renderer of named("patches")) renderer.visible = target.checked;
      redraw();
    });
    root.addEventListener("click", ({ target }) => { if (target.dataset.zoom) zoom(Number(target.dataset.zoom)); });
    view.addEventListener("keydown", (event) => {
      const by = event.shiftKey ? 32 : 1;
      const moves = { ArrowUp: [-by, 0], ArrowDown: [by, 0], ArrowLeft: [0, -by], ArrowRight: [0, by] };
      const factors = { "+": .5, "=": .5, "-": 2, "0": 0 };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in moves) pick(cursor.row + moves[event.key][0], cursor.col + moves[event.key][1]);
      else if (event.key in factors) zoom(factors[event.key]);
      else return;
      event.preventDefault();
    });
    const wheel = figure.toolbar.tools.find((tool) => tool.type === "WheelZoomTool");
    view.addEventListener("focusin", () => { figure.toolbar.active_scroll = wheel; wheel.active = true; });
    view.addEventListener("focusout", () => { wheel.active = false; });
    view.addEventListener("pointerdown", ({ clientX, clientY }) => { down = [clientX, clientY]; }, true);
    view.firstElementChild.tabIndex = -1;  // one stop of the Tab key for the map, not two
    await Promise.all([redraw(), pick(cursor.row, cursor.col)]);
    root.dataset.ready = "yes";
  }

  // --- samples -------------------------------------------------------------------------------------------------
  function gallery(root) {
    const chosen = () => [...root.querySelectorAll("select")].map((select) => [select.name, select.value]);
    function filter() {
      let shown = 0;
      for (const card of root.querySelectorAll(".card")) {
        card.hidden = !chosen().every(([name, value]) => !value || card.dataset[name].split("|").includes(value));
        shown += !card.hidden;
      }
      root.querySelector("[role=status]").textContent = `${shown} shown`;
    }
    root.addEventListener("input", filter);
    filter();
  }

  addEventListener("DOMContentLoaded", async () => {
    document.querySelectorAll(".gallery").forEach(gallery);
    try {
      await Promise.all([...document.querySelectorAll(".chart")].map(chart));
      await Promise.all([...document.querySelectorAll(".map")].map(map));
    } catch (error) {
      document.querySelector("main").prepend(element("p", `This page is not whole: ${error.message}`));
      throw error;
    }
    document.documentElement.dataset.ready = "yes";
  });
  // A figure is painted once: its colours are read anew.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => location.reload());
  return { put };
})();
