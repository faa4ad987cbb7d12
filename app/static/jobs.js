/* What takes the server seconds: asking for it, its progress, cancelling, and the one line when it fails. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make } = vtviz;
  const running = new Map();

  /** Called with every answer of app/analyses.py. */
  function hear(answer) {
    running.get(answer?.job)?.hear(answer);
  }

  /** Called when the server did not take a call, as where its queue is full: which one it does not say. */
  function lost() {
    for (const job of [...running.values()]) if (!job.heard) job.hear({ error: "The page did not take it; try again in a moment." });
  }

  /** A button that asks, and what stands in its place meanwhile. */
  class Job {
    /** `trigger(event, data)` asks the server; `done(result)` hears of the result, `failed()` that none will come. */
    constructor(caption, event, trigger, done, failed = () => {}) {
      Object.assign(this, { event, trigger, done, failed });
      this.button = make("button", { type: "button", class: "vtx-button vtx-go" }, caption);
      this.bar = make("progress", { max: 1 });
      this.told = make("span", { "aria-live": "polite" });
      this.stop = make("button", { type: "button", class: "vtx-button", onclick: () => this.cancel("Cancelled.") }, "Cancel");
      this.busy = make("span", { class: "vtx-busy", hidden: true }, this.bar, this.told, this.stop);
      this.line = make("span", { class: "vtx-fault", role: "alert", hidden: true });
      this.element = make("div", { class: "vtx-asking" }, this.button, this.busy, this.line);
    }

    ask(data) {
      this.end();
      this.id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
      running.set(this.id, this);
      this.heard = false;
      this.show("busy");
      this.bar.removeAttribute("value");
      this.told.textContent = "Waiting for the server …";
      this.trigger(this.event, { job: this.id, ...data });
    }

    hear(answer) {
      if (!this.heard) this.started = performance.now(); // until now it stood in the queue
      this.heard = true;
      if (typeof answer.done === "number") {
        const share = answer.done / Math.max(1, answer.total);
        this.bar.value = share;
        const left = ((performance.now() - this.started) / 1000) * (1 / Math.max(share, 1e-3) - 1);
        this.told.textContent = share < 0.05 ? "Started" : `${Math.round(100 * share)} %, about ${Math.ceil(left)} s left`;
        return;
      }
      running.delete(this.id);
      this.id = null;
      this.show("idle", answer.error || (answer.cancelled ? "Cancelled." : ""));
      if (answer.result) this.done(answer.result);
      else this.failed();
    }

    /** Stop what runs, if something does, with a line. */
    cancel(line = "") {
      this.end();
      this.show("idle", line);
      this.failed();
    }

    end() {
      if (this.id) this.trigger("cancel", { job: this.id });
      running.delete(this.id);
      this.id = null;
    }

    show(state, line = "") {
      const held = this.element.contains(document.activeElement);
      this.busy.hidden = state !== "busy";
      this.button.hidden = state === "busy";
      this.line.hidden = !line;
      this.line.textContent = line;
      if (held) (state === "busy" ? this.stop : this.button).focus(); // what had it is hidden now
    }
  }

  Object.assign(vtviz, { hear, lost, Job });
})();
