/* The row of views below the photo, of which one is open. A view is an object { element, load(scene), draw(scene, state) }
 * that draws the same scene in another way; photo, chosen token and options stay as they are.
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make } = vtviz;

  /** Name (as in links), caption, and whether it needs a model with tokens. */
  const VIEWS = [
    ["tokens", "Tokens", false],
    ["lineage", "Lineage", true],
    ["pixel", "Pixel", true],
    ["ablation", "Does it matter?", true],
    ["attribution", "Attribution", false],
  ];

  let count = 0; // of instances, for there may be several on a page

  class Views {
    /** `parts`: name -> view. */
    constructor(set, parts) {
      this.set = set;
      const id = `vtx-views-${++count}`;
      this.list = VIEWS.filter(([name]) => parts[name]).map(([name, caption, needsTokens]) => {
        const tab = make(
          "button",
          {
            type: "button", role: "tab", class: "vtx-view", id: `${id}-tab-${name}`, "aria-controls": `${id}-${name}`,
            onclick: () => set({ view: name }),
          },
          caption,
        );
        const { element } = parts[name];
        const panel = make(
          "div",
          { class: "vtx-sheet", role: "tabpanel", id: `${id}-${name}`, "aria-labelledby": tab.id, "data-view": name },
          element,
        );
        return { name, tab, panel, needsTokens, part: parts[name] };
      });
      this.tabs = make(
        "div",
        { class: "vtx-views", role: "tablist", "aria-label": "Views", onkeydown: (event) => this.walk(event) },
        ...this.list.map((each) => each.tab),
      );
      const keys = make("p", { class: "vtx-keys" },
        make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " tokens  ", make("kbd", {}, "↑"), " ", make("kbd", {}, "↓"), " layers");
      this.keys = keys;
      this.element = make("section", { class: "vtx-main" }, make("div", { class: "vtx-viewbar" }, this.tabs, keys), ...this.list.map((each) => each.panel));
    }

    load(scene) {
      this.there = this.list.filter((each) => scene.layers.length || !each.needsTokens);
      for (const { part } of this.list) part.load(scene);
    }

    /** The view that is open: the one asked for, where the model has it. */
    open(state) {
      return this.there.find((each) => each.name === state.view) ?? this.there[0];
    }

    draw(scene, state) {
      const open = this.open(state);
      this.keys.hidden = !scene.layers.length;
      for (const each of this.list) {
        each.tab.hidden = !this.there.includes(each);
        each.panel.hidden = each !== open;
        each.tab.setAttribute("aria-selected", String(each === open));
        each.tab.tabIndex = each === open ? 0 : -1;
      }
      open.part.draw(scene, state);
    }

    walk(event) {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation(); // elsewhere they walk tokens
      const at = this.there.findIndex((each) => each.tab === document.activeElement);
      const next = this.there[(at + step + this.there.length) % this.there.length];
      this.set({ view: next.name });
      next.tab.focus();
    }
  }

  Object.assign(vtviz, { VIEWS, Views });
})();
