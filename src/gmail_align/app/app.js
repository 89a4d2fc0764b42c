"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const make = (tag, options = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), options);
    node.append(...children);
    return node;
  };
  const near = (kind, images) => make("div", { className: "near" }, ...images.map((image) =>
    make("figure", {},
      make("img", { className: kind, src: `/image/${kind}/${encodeURIComponent(image.id)}`, alt: `${kind} image ${image.id}` }),
      make("figcaption", { textContent: image.cosine.toFixed(3) }))));
  const show = ({ captions, routes }) => {
    byId("caption-list").replaceChildren(...captions.map((one) => make("div", { className: one.mark },
      make("dt", { textContent: one.row }), make("dd", { textContent: one.text, dir: "auto" }))));
    byId("route-list").replaceChildren(...routes.map((one) => make("div", { className: "route" },
      make("h3", { textContent: `${one.encoder}, route ${one.route}: cosine ${one.cosine.toFixed(3)} to frozen` }),
      near("real", one.real), near("generated", one.generated))));
    byId("captions").parentElement.hidden = captions.length === 0;
    byId("routes").parentElement.hidden = false;
  };
  const look = async (file) => {
    if (!file) return;
    byId("shown").src = URL.createObjectURL(file);
    byId("shown").hidden = false;
    byId("state").textContent = "Looking…";
    try {
      const answer = await fetch("/look", { method: "POST", body: file, headers: { "X-Gmail-Align": "look" } });
      if (!answer.ok) throw new Error(await answer.text());
      show(await answer.json());
      byId("state").textContent = "";
    } catch (error) {
      byId("state").textContent = error.message;
    }
  };
  byId("file").addEventListener("change", (event) => look(event.target.files[0]));
  const drop = byId("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") look(event.dataTransfer.files[0]);
    });
  }
})();
