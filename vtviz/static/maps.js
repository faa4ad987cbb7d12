/* Token maps in the browser: decoding, geometry and sampling. Pure functions, no DOM. A report has them, and the page.
 *
 * The data holds each layer's token coefficients A as raw float32, (heads, tokens, h, w), every map
 * summing to 1. What is shown is A * h * w, "times uniform": 1 = the token looks everywhere alike.
 */
(function () {
  "use strict";
  const vtviz = (window.vtviz = window.vtviz || {});

  /** base64 of little-endian float32 -> Float32Array. */
  function decodeFloats(text) {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    const view = new DataView(bytes.buffer);
    const out = new Float32Array(bytes.length / 4);
    for (let i = 0; i < out.length; i++) out[i] = view.getFloat32(4 * i, true);
    return out;
  }

  /** base64 of (256, 3) uint8 -> Uint8Array of 768. */
  function decodeBytes(text) {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  }

  /** {shape, data} of 16-bit shares -> { shape, values }, shares of 1; null stays null. */
  function decodeShares(part) {
    if (!part) return null;
    const bytes = decodeBytes(part.data);
    const values = Float32Array.from({ length: bytes.length / 2 }, (_, i) => (bytes[2 * i] + 256 * bytes[2 * i + 1]) / 65535);
    return { shape: part.shape, values };
  }

  /** One layer with its maps decoded; `map(token, head)` is in times uniform, head -1 = mean of the heads. */
  class Layer {
    constructor(data, index) {
      Object.assign(this, data);
      this.index = index;
      [this.heads, this.tokens, this.h, this.w] = data.shape;
      this.floats = decodeFloats(data.coefficients);
      this.attention = decodeShares(data.attention);
      this.projector = decodeShares(data.projector);
      this.cache = new Map();
    }

    map(token, head) {
      const key = token * (this.heads + 1) + head + 1;
      if (!this.cache.has(key)) {
        const size = this.h * this.w;
        const first = head < 0 ? 0 : head;
        const count = head < 0 ? this.heads : 1;
        const out = new Float32Array(size);
        for (let i = 0; i < size; i++) {
          let sum = 0;
          for (let k = first; k < first + count; k++) sum += this.floats[(k * this.tokens + token) * size + i];
          out[i] = (sum / count) * size;
        }
        this.cache.set(key, out);
      }
      return this.cache.get(key);
    }

    /** Statistics of the heads' mean (head -1) or of one head, computed by the server with vtviz.tokens. */
    numbers(head) {
      return this.statistics[head + 1];
    }

    /** The token whose mean map peaks highest, of those that peak within the photo: what peaks on the outermost cells is
     *  mostly the network's padding. */
    strongest() {
      const peaks = this.peaks(-1);
      const order = peaks.map((_, token) => token).sort((a, b) => peaks[b] - peaks[a]);
      return order.find((token) => !this.peaksAtTheEdge(token)) ?? order[0];
    }

    peaksAtTheEdge(token) {
      const map = this.map(token, -1);
      const cell = map.indexOf(map.reduce((most, value) => Math.max(most, value)));
      const [y, x] = [Math.floor(cell / this.w), cell % this.w];
      return y === 0 || x === 0 || y === this.h - 1 || x === this.w - 1;
    }

    /** Highest value of each token's map, in times uniform. */
    peaks(head) {
      return this.numbers(head).tokens.map((token) => token.peak);
    }
  }

  /** Where `n` samples along one axis of the whole image fall on the map's cells.
   *
   * Sample i is the pixel centre (i + 0.5) / n of the image. Receptive field: cell c of the map is centred at
   * model-input pixel stride * c; plain resize: at stride * c + (stride - 1) / 2. Cells beyond the edge repeat the edge.
   */
  function axisCells(n, resized, offset, input, stride, cells, align) {
    const low = new Int32Array(n);
    const high = new Int32Array(n);
    const mix = new Float32Array(n);
    const inside = new Uint8Array(n);
    const shift = align === "resize" ? (stride - 1) / 2 : 0;
    for (let i = 0; i < n; i++) {
      const pixel = ((i + 0.5) * resized) / n - 0.5 - offset;
      inside[i] = pixel >= -0.5 && pixel <= input - 0.5 ? 1 : 0;
      const cell = Math.min(Math.max((pixel - shift) / stride, 0), cells - 1);
      low[i] = Math.floor(cell);
      high[i] = Math.min(low[i] + 1, cells - 1);
      mix[i] = cell - low[i];
    }
    return { low, high, mix, inside };
  }

  function axes(layer, geometry, height, width, align) {
    const g = geometry;
    return [
      axisCells(height, g.resized[0], g.offset[0], g.input[0], layer.stride, layer.h, align),
      axisCells(width, g.resized[1], g.offset[1], g.input[1], layer.stride, layer.w, align),
    ];
  }

  /** A map resampled (bilinear) over the whole image in height x width samples; NaN outside the crop. */
  function resample(map, layer, geometry, height, width, align) {
    const [ys, xs] = axes(layer, geometry, height, width, align);
    const out = new Float32Array(height * width);
    const row = new Float32Array(layer.w);
    for (let y = 0; y < height; y++) {
      const a = ys.low[y] * layer.w;
      const b = ys.high[y] * layer.w;
      for (let c = 0; c < layer.w; c++) row[c] = map[a + c] + (map[b + c] - map[a + c]) * ys.mix[y];
      for (let x = 0; x < width; x++) {
        const value = row[xs.low[x]] + (row[xs.high[x]] - row[xs.low[x]]) * xs.mix[x];
        out[y * width + x] = ys.inside[y] && xs.inside[x] ? value : NaN;
      }
    }
    return out;
  }

  /** The value of a map at pixel (y, x) of the original image, in times uniform; NaN outside the crop. */
  function valueAt(map, layer, geometry, y, x, align) {
    const [height, width] = geometry.original;
    const [ys, xs] = axes(layer, geometry, height, width, align);
    if (!ys.inside[y] || !xs.inside[x]) return NaN;
    const at = (row) => {
      const left = map[row * layer.w + xs.low[x]];
      return left + (map[row * layer.w + xs.high[x]] - left) * xs.mix[x];
    };
    return at(ys.low[y]) + (at(ys.high[y]) - at(ys.low[y])) * ys.mix[y];
  }

  /** Colour `values` into RGBA bytes: `lut` is 256 RGB triples from `low` to `high`; NaN becomes transparent. */
  function colorize(values, lut, low, high, rgba) {
    const factor = high > low ? 255 / (high - low) : 0;
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      const out = 4 * i;
      if (value !== value) {
        rgba[out + 3] = 0;
        continue;
      }
      const entry = 3 * Math.min(255, Math.max(0, Math.round((value - low) * factor)));
      rgba[out] = lut[entry];
      rgba[out + 1] = lut[entry + 1];
      rgba[out + 2] = lut[entry + 2];
      rgba[out + 3] = 255;
    }
  }

  Object.assign(vtviz, { decodeFloats, decodeBytes, decodeShares, Layer, axes, resample, valueAt, colorize });
})();
