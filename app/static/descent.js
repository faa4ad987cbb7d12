/* The descent of tokens (payload.lineage): slots, maps and lines of descent. No DOM.
 *
 * A slot is a token's place among its layer's L tokens, those kept from the layer before first; a kept token has no map
 * there, but the one that it was gathered with.
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;

  class Descent {
    constructor({ joint, tokens, links }) {
      Object.assign(this, { joint, tokens, links });
    }

    /** Slot of a layer's map. */
    slot(layer, map) {
      return this.tokens[layer].findIndex((token) => token.map === map);
    }

    /** A slot's own and all others of its line, as a set of "layer/slot". */
    path(layer, slot) {
      const found = new Set([`${layer}/${slot}`]);
      for (let [i, at] = [layer, slot]; i > 0 && at !== null; i--) {
        at = this.tokens[i][at].origin;
        if (at !== null) found.add(`${i - 1}/${at}`);
      }
      for (let [i, at] = [layer, slot]; i + 1 < this.tokens.length; i++) {
        at = this.tokens[i + 1].find((token) => token.origin === at)?.slot;
        if (at === undefined) break;
        found.add(`${i + 1}/${at}`);
      }
      return found;
    }

    /** [layer][slot] -> row in which its line of descent is drawn: that of its origin, else the next one free. */
    rows() {
      let next = 0;
      const rows = [];
      this.tokens.forEach((tokens, layer) => {
        if (this.joint) next = 0; // levels have nothing of each other
        rows.push(tokens.map(({ origin }) => (origin === null ? next++ : rows[layer - 1][origin])));
      });
      return rows;
    }

    /** "Kept: token 9 of layer 0", in a few words. */
    origin({ layer, kind, origin, gathered }) {
      if (kind === "kept") return `kept: token ${gathered[1]} of layer ${gathered[0]}`;
      if (kind === "static") return "gathered with learned weights";
      const from = this.tokens[layer - 1][origin];
      return `token ${from.gathered[1]} of layer ${from.gathered[0]} became its filter`;
    }
  }

  /** How much slot `row` reads each slot in a transformer, in times uniform; of all layers' where it is joint.
   *  `head` -1 = the heads' mean. null where the layer has no transformer. */
  function attentionRow(layer, row, head) {
    if (!layer.attention) return null;
    const [heads, rows, keys] = layer.attention.shape;
    const chosen = head >= 0 && head < heads ? [head] : Array.from({ length: heads }, (_, i) => i);
    return Array.from({ length: keys }, (_, key) => {
      const sum = chosen.reduce((total, h) => total + layer.attention.values[(h * rows + row) * keys + key], 0);
      return (sum / chosen.length) * keys;
    });
  }

  Object.assign(vtviz, { Descent, attentionRow });
})();
