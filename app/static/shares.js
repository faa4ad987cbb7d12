/* What each token adds to a class's score, by the methods of Attribution that go through the tokens. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help } = vtviz;

  const HELP =
    "What the token adds to the class's score: its logit; of a segmentation the sum of its logits over the pixels predicted " +
    "as it. Above by integrated gradients, whose numbers sum to what a layer's tokens add in all; below by gradient × token.";
  const METHODS = ["token_integrated_gradients", "gradient_x_token"];
  const ROOM = 60;

  class TokenShares {
    constructor(set) {
      this.set = set;
      this.element = make("section", { class: "vtx-shares" });
    }

    /** Show what an attribution found of the scene's tokens, if it has some. */
    build(scene, { methods }) {
      this.nodes = [];
      if (!scene.descent) return;
      const found = METHODS.map((name) => methods.find((each) => each.method === name).tokens);
      const most = Math.max(1e-9, ...Object.values(found[0]).flat().map(Math.abs));
      const rows = scene.layers.map((layer, i) => {
        const nodes = scene.descent.tokens[i].map((token, slot) => this.buildNode(token, found.map((each) => each[layer.name][slot]), most));
        this.nodes.push(...nodes);
        const sum = signed(found[0][layer.name].reduce((a, b) => a + b, 0));
        const name = scene.segments ? `${layer.name} · ` : "";
        return make("div", {}, make("h5", {}, `Layer ${i}`, make("small", {}, `${name}${sum} in all`)),
          make("div", { class: "vtx-sharelist" }, ...nodes.map((node) => node.button)));
      });
      this.element.replaceChildren(make("h4", {}, "What each token adds", help("a token's share", HELP)), ...rows);
    }

    buildNode(token, [value, other], most) {
      const [layer, map] = token.gathered;
      const thumb = new vtviz.Thumb(layer, map);
      const kept = token.kind === "kept";
      const bar = make("i", { "data-sign": value < 0 ? "less" : "more" });
      bar.style.width = `${((100 * Math.abs(value)) / most).toFixed(1)}%`;
      const button = make(
        "button",
        {
          type: "button", class: "vtx-share", onclick: () => this.set({ layer, token: map }),
          "aria-label": `Token ${map} of layer ${layer}${kept ? ", kept" : ""}: adds ${signed(value)}; by gradient × token ${signed(other)}`,
        },
        thumb.canvas,
        make("span", { class: "vtx-tag" }, make("b", {}, String(map), kept ? make("small", {}, "kept") : null), make("b", { class: "vtx-added" }, signed(value))),
        make("span", { class: "vtx-lane" }, bar),
        make("span", { class: "vtx-tag" }, make("span", {}), make("span", {}, signed(other))),
      );
      return { token, thumb, button };
    }

    draw(scene, state) {
      for (const { token, thumb, button } of this.nodes) {
        thumb.draw(scene, state, ROOM);
        const chosen = token.gathered[0] === state.layer && token.gathered[1] === state.token;
        button.setAttribute("aria-current", String(chosen));
      }
    }
  }

  /** "+1.2", "−51K", "0". */
  function signed(value) {
    const size = Math.abs(value);
    const text = size < 0.005 ? "0" : size < 99.5 ? size.toFixed(size < 9.95 ? 2 : 1) : compact(size);
    return `${Number(text) === 0 ? "" : value < 0 ? "−" : "+"}${text}`;
  }

  const numbers = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

  /** "430K" of 430123. */
  function compact(value) {
    return numbers.format(value);
  }

  Object.assign(vtviz, { compact, TokenShares });
})();
