"use strict";
// Makes tables sort, and shows the pair behind each point of the maps. The page reads without it.
(() => {
  const make = (tag, options = {}, ...children) => {
    const { text, ...rest } = options;
    const node = Object.assign(document.createElement(tag), rest);
    if (text !== undefined) node.textContent = text;
    node.append(...children);
    return node;
  };

  // Tables: a click on a heading sorts by its column; a second click turns the order round.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const number = Number.parseFloat(cell.dataset.value ?? "");
    return Number.isNaN(number) ? cell.textContent.trim() : number;
  };
  const compare = (a, b) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : a.localeCompare(b);
  };
  for (const table of document.querySelectorAll("table.sorts")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", className: "sort", text: head.textContent.trim() });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column)) * (down ? -1 : 1));
        table.tBodies[0].append(...rows);
      });
    });
    const filter = document.querySelector(`input[data-filters="${table.id}"]`);
    filter?.addEventListener("input", () => {
      const wanted = filter.value.trim().toLowerCase();
      for (const row of table.tBodies[0].rows) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
      }
    });
  }

  // Maps: the pair behind a point, and all pairs in an order that the reader chooses.
  const source = document.getElementById("pairs-data");
  const place = document.getElementById("explore");
  if (!source || !place) return;
  const { pairs, maps } = JSON.parse(source.textContent);
  const PAGE = 12;
  const image = (pair, kind) =>
    make("img", { src: pair[kind], className: kind, alt: `${kind} image: ${pair.caption}`, loading: "lazy" });
  const cosines = (index) => maps.map((map) => `${map.name}: cosine ${map.cosines[index].toFixed(3)}`);
  const couple = (index) =>
    make("span", { className: "couple" }, image(pairs[index], "real"), image(pairs[index], "generated"));

  const card = make("div", { id: "pair-card", hidden: true });
  card.setAttribute("role", "status");
  document.body.append(card);
  const choose = (index) => {
    for (const point of document.querySelectorAll("[data-pair].chosen")) point.classList.remove("chosen");
    for (const svg of document.querySelectorAll("svg[data-map]")) {
      const ends = [...svg.querySelectorAll(`[data-pair="${index}"]`)];
      ends.forEach((point) => point.classList.add("chosen"));
      const line = svg.querySelector(".tie");
      const [from, to] = ends;
      line.toggleAttribute("hidden", ends.length !== 2);
      if (ends.length === 2) {
        line.setAttribute("x1", from.dataset.x);
        line.setAttribute("y1", from.dataset.y);
        line.setAttribute("x2", to.dataset.x);
        line.setAttribute("y2", to.dataset.y);
      }
    }
  };
  const show = (index, x, y) => {
    choose(index);
    card.replaceChildren(
      couple(index),
      make("p", { text: pairs[index].caption, dir: "auto" }),
      make("small", { text: cosines(index).join(" · ") }),
    );
    card.hidden = false;
    const box = card.getBoundingClientRect();
    card.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - box.width - 8))}px`;
    card.style.top = `${Math.max(8, y + 14 + box.height > innerHeight ? y - box.height - 14 : y + 14)}px`;
  };
  const hide = () => { card.hidden = true; };
  for (const svg of document.querySelectorAll("svg[data-map]")) {
    const at = (event) => event.target.closest?.("[data-pair]");
    svg.addEventListener("pointerover", (event) => {
      const point = at(event);
      if (point) show(Number(point.dataset.pair), event.clientX, event.clientY);
    });
    svg.addEventListener("pointerout", (event) => { if (at(event)) hide(); });
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", hide, { passive: true });

  const numbers = pairs.map((_, index) => index);
  const orders = { "as listed": () => 0 };
  for (const map of maps) {
    orders[`nearest first, ${map.name}`] = (a, b) => map.cosines[b] - map.cosines[a];
    orders[`farthest first, ${map.name}`] = (a, b) => map.cosines[a] - map.cosines[b];
  }
  if (maps.length > 1) {
    const gain = (index) => maps[1].cosines[index] - maps[0].cosines[index];
    orders[`came nearest, ${maps[1].name}`] = (a, b) => gain(b) - gain(a);
    orders[`went farthest, ${maps[1].name}`] = (a, b) => gain(a) - gain(b);
  }
  const order = make("select", { id: "pair-order" }, ...Object.keys(orders).map((name) => make("option", { text: name })));
  const words = make("input", { id: "pair-words", type: "search", placeholder: "a word of the caption" });
  const list = make("ol", { className: "pair-list" });
  const more = make("button", { type: "button", className: "more" });
  const count = make("p", { className: "note" });
  count.setAttribute("role", "status");
  let shown = PAGE;
  const draw = () => {
    const wanted = words.value.trim().toLowerCase();
    const chosen = numbers.filter((index) => pairs[index].caption.toLowerCase().includes(wanted)).sort(orders[order.value]);
    list.replaceChildren(...chosen.slice(0, shown).map((index) => {
      const button = make("button", { type: "button" }, couple(index),
        make("span", { text: pairs[index].caption, dir: "auto" }),
        make("small", { text: cosines(index).join(" · ") }));
      button.dataset.index = index;
      button.addEventListener("click", () => choose(index));
      button.addEventListener("pointerenter", () => choose(index));
      return make("li", {}, button);
    }));
    const left = chosen.length - Math.min(shown, chosen.length);
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(PAGE, left)} more of ${left}`;
    count.textContent = `${Math.min(shown, chosen.length)} of ${chosen.length} pairs`;
  };
  const again = () => { shown = PAGE; draw(); };
  order.addEventListener("change", again);
  words.addEventListener("input", again);
  more.addEventListener("click", () => { shown += PAGE; draw(); });
  place.append(
    make("div", { className: "tools" },
      make("label", { text: "Order " }, order), make("label", { text: "Search " }, words)),
    count, list, more,
  );
  draw();
})();
