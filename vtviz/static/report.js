/* The maps of a report: the photo with the chosen token over it, and every token beside it. Text is set as text only.
 * How maps are decoded and where they lie stands in maps.js.
 */
(() => {
  "use strict";
  const { Layer, resample, colorize, valueAt, decodeBytes } = window.vtviz;
  const data = JSON.parse(document.getElementById("data").textContent);
  const { geometry } = data;
  const element = (id) => document.getElementById(id);
  const state = { layer: 0, token: data.start, head: -1, colormap: "jet", scale: "shared", opacity: 0.5 };
  const luts = Object.fromEntries(Object.entries(data.colormaps).map(([name, text]) => [name, decodeBytes(text)]));
  const layers = data.layers.map((layer, index) => new Layer(layer, index));
  const ALIGN = "receptive_field";

  /** One token's map in times uniform: of the chosen head where the layer has it, else the heads' mean. */
  function mapOf(layer, token) {
    return layer.map(token, state.head < layer.heads ? state.head : -1);
  }

  const most = (map) => map.reduce((a, b) => Math.max(a, b));

  /** Ends of the colour scale, by the rules of vtviz.render.value_range: for all maps ... */
  function sharedRange() {
    const all = layers.flatMap((layer) => Array.from({ length: layer.tokens }, (_, token) => most(mapOf(layer, token))));
    const peaks = all.sort((a, b) => a - b);
    return [0, Math.max(2, (peaks[(peaks.length - 1) >> 1] + peaks[peaks.length >> 1]) / 2)];
  }

  /** ... and for one. */
  function ownRange(map) {
    const [low, high] = [map.reduce((a, b) => Math.min(a, b)), most(map)];
    return high > low ? [low, high] : [0, Math.max(2, high)];
  }

  /** The photo with one token's map over it; what a crop cut off is dimmed. */
  function draw(canvas, width, height, layer, token, shared) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    context.drawImage(element("photo"), 0, 0, width, height);
    const image = context.getImageData(0, 0, width, height);
    const map = mapOf(layer, token);
    const [low, high] = shared || ownRange(map);
    const colours = new Uint8ClampedArray(image.data.length);
    colorize(resample(map, layer, geometry, height, width, ALIGN), luts[state.colormap], low, high, colours);
    for (let i = 0; i < colours.length; i += 4) {
      for (let c = i; c < i + 3; c++) {
        const pixel = image.data[c];
        image.data[c] = colours[i + 3] ? pixel + (colours[c] - pixel) * state.opacity : 0.35 * pixel;
      }
    }
    context.putImageData(image, 0, 0);
  }

  const times = (value) => `${value.toFixed(value < 99.5 ? 1 : 0)}×`;

  function drawAll() {
    const layer = layers[state.layer];
    const map = mapOf(layer, state.token);
    const stage = element("stage");
    const [h, w] = geometry.original;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const tallest = parseFloat(getComputedStyle(stage).maxHeight);
    const shown = Math.max(1, Math.min(stage.clientWidth, (tallest * w) / h));
    element("map").style.width = `${shown}px`;
    const width = Math.round(shown * ratio);
    const shared = state.scale === "shared" ? sharedRange() : null;
    draw(element("map"), width, Math.max(1, Math.round((width * h) / w)), layer, state.token, shared);
    const heads = layer.heads === 1 ? "" : state.head < 0 ? `, mean of ${layer.heads} heads` : `, head ${state.head}`;
    const text = `Layer ${state.layer}, token ${state.token}${heads}: peak ${times(most(map))}`;
    element("caption").textContent = text;
    element("map").setAttribute("aria-label", `The photo under the map of ${text}`);
    const [low, high] = shared || ownRange(map);
    const bar = element("bar").getContext("2d");
    const lut = luts[state.colormap];
    for (let i = 0; i < 256; i++) {
      bar.fillStyle = `rgb(${lut[3 * i]}, ${lut[3 * i + 1]}, ${lut[3 * i + 2]})`;
      bar.fillRect(i, 0, 1, 1);
    }
    element("low").textContent = low.toFixed(low ? 1 : 0);
    element("high").textContent = `${high.toFixed(1)}${shared ? "+" : ""}`;
    const tile = Math.round(88 * ratio);
    for (const button of buttons) {
      const [l, t] = [Number(button.dataset.layer), Number(button.dataset.token)];
      const scale = tile / Math.max(h, w);
      const size = [w, h].map((n) => Math.max(8, Math.round(n * scale)));
      draw(button.firstElementChild, ...size, layers[l], t, shared);
      button.lastElementChild.lastElementChild.textContent = times(most(mapOf(layers[l], t)));
      button.setAttribute("aria-pressed", String(l === state.layer && t === state.token));
    }
  }

  function make(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  const set = (patch) => {
    Object.assign(state, patch);
    drawAll();
  };

  const buttons = [];
  layers.forEach((layer, l) => {
    const row = make("div", { className: "tokens" });
    for (let t = 0; t < layer.tokens; t++) {
      const tag = make("span", { className: "tag" }, make("span", {}, String(t)), make("span", {}));
      const button = make("button", { type: "button", title: `Layer ${l}, token ${t}` }, make("canvas", {}), tag);
      button.onclick = () => set({ layer: l, token: t });
      Object.assign(button.dataset, { layer: l, token: t });
      buttons.push(button);
      row.append(button);
    }
    const from = layer.kept ? `${layer.tokens} new tokens, ${layer.kept} kept from the layer before` : `${layer.tokens} tokens`;
    element("rows").append(make("h3", {}, `Layer ${l} (${layer.name}): ${from}`), row);
  });
  element("rows").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = step && buttons[buttons.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
    next.click();
  };

  for (const name of Object.keys(luts)) element("colormap").append(make("option", { value: name }, name));
  const heads = Math.max(...layers.map((layer) => layer.heads));
  for (let k = 0; k < heads && heads > 1; k++) element("head").append(make("option", { value: k }, `head ${k}`));
  element("head").parentElement.hidden = heads === 1;
  for (const id of ["colormap", "scale"]) element(id).onchange = () => set({ [id]: element(id).value });
  element("head").onchange = () => set({ head: Number(element("head").value) });
  element("opacity").oninput = () => set({ opacity: element("opacity").valueAsNumber });
  for (const id of ["colormap", "scale", "head", "opacity"]) element(id).value = state[id]; // a reload keeps old ones

  const canvas = element("map");
  canvas.onpointermove = (event) => {
    const box = canvas.getBoundingClientRect();
    const [h, w] = geometry.original;
    const at = (n, share) => Math.min(Math.max(Math.floor(share * n), 0), n - 1);
    const [y, x] = [at(h, (event.clientY - box.top) / box.height), at(w, (event.clientX - box.left) / box.width)];
    const layer = layers[state.layer];
    const value = valueAt(mapOf(layer, state.token), layer, geometry, y, x, ALIGN);
    element("here").textContent = `at ${x}, ${y}: ${value === value ? `${value.toFixed(2)}×` : "cut off"}`;
  };
  canvas.onpointerleave = () => (element("here").textContent = "");

  const ready = () => {
    document.documentElement.classList.add("ready");
    drawAll();
    let width = window.innerWidth;
    window.onresize = () => width !== window.innerWidth && ((width = window.innerWidth), drawAll());
  };
  element("photo").decode().then(ready);
})();
