/* Small helpers for building pages by hand: elements, labelled controls, "?" tooltips. Text is always set as text,
 * never as HTML, because labels and names come from users' files.
 */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  let count = 0;

  /** make("button", { class: "x", onclick: f }, child, ...) -> element. Strings become text nodes. */
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (typeof value === "function") element[name] = value;
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  /** A "?" that explains `text` on hover, focus or tap, and to screen readers. */
  function help(about, text) {
    const id = `vtx-help-${++count}`;
    const bubble = make("span", { class: "vtx-bubble", role: "tooltip", id }, text);
    const button = make(
      "button",
      { type: "button", class: "vtx-help", "aria-label": `What is ${about}?`, "aria-describedby": id },
      "?",
    );
    const show = () => {
      bubble.classList.add("vtx-open");
      bubble.style.setProperty("--shift", "0px");
      const box = bubble.getBoundingClientRect();
      const over = Math.min(0, document.documentElement.clientWidth - 8 - box.right) || Math.max(0, 8 - box.left);
      bubble.style.setProperty("--shift", `${over}px`);
    };
    const hide = () => bubble.classList.remove("vtx-open");
    button.onmouseenter = button.onfocus = button.onclick = show;
    button.onmouseleave = button.onblur = hide;
    button.onkeydown = (event) => event.key === "Escape" && hide();
    return make("span", { class: "vtx-hint" }, button, bubble);
  }

  /** A caption over a control, tied to it. */
  function labelled(caption, control, hint) {
    control.id = control.id || `vtx-control-${++count}`;
    const label = make("label", { for: control.id }, caption);
    return make("div", { class: "vtx-field" }, make("span", { class: "vtx-label" }, label, hint), control);
  }

  function select(choices, value, onchange) {
    const control = make("select", { onchange: () => onchange(control.value) });
    for (const [key, text] of choices) control.append(make("option", { value: key }, text));
    control.value = value;
    return control;
  }

  /** Bring children into an order, moving only what is out of it, so that focus stays. */
  function arrange(parent, children) {
    children.forEach((child, i) => parent.children[i] !== child && parent.insertBefore(child, parent.children[i] ?? null));
  }

  /** Offer a blob or an address as a file. */
  function download(source, name) {
    const url = source instanceof Blob ? URL.createObjectURL(source) : source;
    const link = make("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    if (source instanceof Blob) setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  Object.assign(vtviz, { make, help, labelled, select, arrange, download });
})();
