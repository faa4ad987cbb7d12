/* The view Attribution: which pixels speak for a class, by several methods side by side, and how far they agree. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make, help, labelled, select } = vtviz;

  const [FOR, AGAINST] = [[200, 16, 32], [20, 80, 190]];
  /** Blue to nothing to red, for bytes of 128 + 127 v. */
  const SIGNED = Uint8Array.from({ length: 768 }, (_, i) => (i >= 3 * 128 ? FOR : AGAINST)[i % 3]);
  const ABOUT = {
    token_integrated_gradients: "How much each token adds to the class's score on the way from nothing to the token, spread over the places that it looks at.",
    gradient_x_token: "The same in one step: each token times the score's gradient, spread over the places that it looks at.",
    integrated_gradients: "How much each pixel adds to the score on the way from a plain image to the photo (Captum).",
    grad_cam: "The last features, weighted by their gradient: what a plain network would show (Captum). Only what speaks for the class.",
    occlusion: "How much the score falls when a grey square hides the place (Captum).",
  };
  const AGREE_HELP =
    "Rank correlation of two methods' maps: 1 = they order all places alike, 0 = they have nothing in common, below 0 = they contradict each other.";
  const CLASS_HELP = "What is explained: the most probable class at first; of a segmentation the one with most pixels.";

  class AttributionView {
    constructor(set, trigger, point) {
      Object.assign(this, { set, point });
      this.tiles = [];
      this.lead = make("p", { class: "vtx-lead" },
        "Which places speak for a class? Several methods answer, some through the tokens, some through the pixels. ",
        make("b", {}, "Red speaks for the class, blue against it."), " Where they disagree, trust none alone.");
      this.job = new vtviz.Job("Ask all methods", "analyse", trigger, (result) => this.receive(result), () => this.sync());
      this.job.button.onclick = () => this.ask();
      this.target = select([], "", () => (this.job.id || this.scene.results.attribution) && this.ask());
      const ask = make("div", { class: "vtx-ask" }, labelled("Class", this.target, help("class", CLASS_HELP)), this.job.element);
      this.told = make("p", { class: "vtx-told", "aria-live": "polite" });
      this.maps = make("div", { class: "vtx-methods" });
      this.test = new vtviz.MapTest(set, trigger);
      this.shares = new vtviz.TokenShares(set);
      this.agreement = make("section", { class: "vtx-agreement vtx-box" });
      this.element = make("div", {}, this.lead, ask, this.told, this.maps, this.test.element, this.shares.element, this.agreement);
    }

    load(scene) {
      if (this.scene?.payload.id !== scene.payload.id) this.job.cancel();
      this.scene = scene;
      this.test.load(scene);
      if (scene.segments) {
        const there = scene.segments.present("predicted")[0].filter((each) => each.area > 0);
        this.target.replaceChildren(...there.map((each) => make("option", { value: each.index }, each.name)));
      } else vtviz.offerClasses(this.target, scene.payload);
    }

    ask() {
      this.test.job.cancel();
      this.job.ask({ kind: "attribution", label: Number(this.target.value) });
    }

    receive(result) {
      this.scene.results.attribution = result;
      this.test.reset();
      this.set({});
    }

    /** As in "Does it matter?". */
    sync() {
      vtviz.chooseClass(this.target, this.scene?.results.attribution);
    }

    draw(scene, state) {
      const found = scene.results.attribution;
      for (const part of [this.told, this.maps, this.agreement]) part.hidden = !found;
      this.shares.element.hidden = !found || !scene.descent;
      this.test.draw(scene);
      if (this.found !== found) this.build(scene, found);
      this.found = found;
      if (!found) return;
      for (const tile of this.tiles) this.drawTile(tile, scene, state, found.geometry);
      this.shares.draw(scene, state);
    }

    build(scene, found) {
      if (!found) return this.tiles.splice(0);
      const { target, methods } = found;
      this.told.textContent = `${target.label}, ${(100 * target.probability).toFixed(1)} %. Each map has a scale of its own, written below it.`;
      this.tiles = methods.map((method) => {
        const canvas = make("canvas", { role: "img", "aria-label": `What speaks for ${target.label}: ${method.title}` });
        const dot = make("span", { class: "vtx-dot", hidden: true });
        const ends = method.signed ? `±${short(method.end)}` : `0 to ${short(method.end)}`;
        const mat = make("div", { class: "vtx-tile" }, canvas, dot);
        const element = make("figure", {},
          mat,
          make("figcaption", {},
            make("span", { class: "vtx-method" }, make("b", {}, method.title), help(method.title, ABOUT[method.method])),
            make("small", {}, `${ends} · ${method.seconds.toFixed(1)} s`)),
        );
        canvas.onpointermove = (event) => {
          const box = canvas.getBoundingClientRect();
          this.point([(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width]);
        };
        canvas.onpointerleave = () => this.point(null);
        const bytes = vtviz.decodeBytes(method.cells);
        const values = Float32Array.from(bytes, (byte) => (byte - 128) / 127);
        return { method, canvas, dot, mat, values, element };
      });
      this.maps.replaceChildren(...this.tiles.map((tile) => tile.element));
      this.shares.build(scene, found);
      this.buildAgreement(found);
    }

    drawTile(tile, scene, { opacity }, geometry) {
      const [width, height] = vtviz.resize(tile.canvas, ...vtviz.fit(geometry, tile.mat.clientWidth, 1.25 * tile.mat.clientWidth));
      const [h, w] = tile.method.shape;
      const layer = { stride: tile.method.stride, h, w };
      const values = vtviz.resample(tile.values, layer, geometry, height, width, "resize");
      vtviz.signedOverlay(tile.canvas.getContext("2d"), width, height, scene.photo, geometry, (rgba) => {
        vtviz.colorize(values, SIGNED, -1, 1, rgba);
        const full = 2 * opacity; // at a half, which is usual, the ends of the scale cover the photo
        for (let i = 0; i < values.length; i++) {
          if (rgba[4 * i + 3]) rgba[4 * i + 3] = Math.min(255, 255 * full * Math.abs(values[i]));
        }
      });
    }

    /** The pointer in every map. */
    mark(pointer) {
      for (const tile of this.tiles) vtviz.place(tile.dot, tile.canvas, pointer);
    }

    buildAgreement({ methods, agreement }) {
      const rows = methods.map((method, i) =>
        make("tr", {}, make("th", { scope: "row" }, `${i + 1} ${method.title}`), ...agreement[i].map((value) => {
          const cell = make("td", { "data-sign": value > 0 ? "more" : null }, value.toFixed(2).replace("-", "−"));
          cell.style.setProperty("--share", `${Math.round(60 * Math.abs(value))}%`);
          return cell;
        })));
      const head = methods.map((_, i) => make("th", { scope: "col" }, String(i + 1)));
      this.agreement.replaceChildren(
        make("h4", {}, "Do they agree?", help("agreement", AGREE_HELP)),
        make("table", {}, make("thead", {}, make("tr", {}, make("td", {}), ...head)), make("tbody", {}, ...rows)),
      );
    }
  }

  function short(value) {
    const rounded = Number(value.toPrecision(2));
    return rounded < 1000 ? rounded.toString() : vtviz.compact(rounded);
  }

  Object.assign(vtviz, { AttributionView });
})();
