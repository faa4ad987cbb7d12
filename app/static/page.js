/* What the page needs around the canvas: example thumbnails, downloads, and photos pasted or dropped anywhere. */
(function () {
  "use strict";
  const vtviz = window.vtviz;
  const { make } = vtviz;

  /** Thumbnails of the examples; `pick(key)` asks the server for one. */
  function examples(element, items, pick) {
    const list = element.querySelector(".vtx-examples");
    list.append(
      make("span", { class: "vtx-label" }, "Or an example"),
      make(
        "div",
        { class: "vtx-thumbs" },
        ...items.map(({ key, title, credit, photo }) =>
          make(
            "button",
            { type: "button", class: "vtx-thumb", title: `${title} (${credit})`, onclick: () => pick(key) },
            make("img", { src: photo, alt: "" }),
            make("span", {}, title),
          ),
        ),
      ),
    );
  }

  /** Hand a file that the server made (Gradio's file data) to the user. */
  function offer(file) {
    const made = Array.isArray(file) ? file[0] : file;
    if (made && made.url) vtviz.download(made.url, made.orig_name || "tokens.npz");
  }

  /** Put an image file into Explore's upload slot, as if it had been chosen there; a file that is none is told so there. */
  function upload(files) {
    const image = [...files].find((file) => file.type.startsWith("image/")) ?? files[0];
    const input = document.querySelector("#photo input[type=file]");
    if (!image || !input || !document.querySelector("#explore .vtx")?.clientWidth) return false; // another tab is open
    const transfer = new DataTransfer();
    transfer.items.add(image);
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  }

  document.addEventListener("paste", (event) => upload(event.clipboardData.files) && event.preventDefault());
  document.addEventListener("dragover", (event) => event.target.closest("#explore .vtx") && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (event.target.closest("#explore .vtx") && upload(event.dataTransfer.files)) event.preventDefault();
  });

  Object.assign(vtviz, { examples, offer });
})();
