// A table of choices. A click, Enter or Space picks a cell; arrows, Home, End and the Page keys move between cells.
// `html` is figures.grid_html's; `picked` is "model|quantization" and follows both ways.

const MOVES = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  PageUp: [-8, 0], PageDown: [8, 0], Home: [0, -99], End: [0, 99],
};

function render({ model, el: place }) {
  const el = document.createElement("div"); // the place itself gets its size from ipywidgets
  place.append(el);
  el.setAttribute("data-lm-suppress-shortcuts", "true"); // or JupyterLab takes the arrow keys for its cells
  el.style.overflow = "auto";
  el.style.height = model.get("height");
  let first = null; // the first row's model: another one means another order, which is read from its top

  const find = (wanted) => {
    const [row, cell] = wanted.split("|").map((word) => CSS.escape(word));
    return cell && el.querySelector(`tr[data-model="${row}"] [data-quantization="${cell}"]`);
  };
  const name = (cell) => `${cell.closest("tr").dataset.model}|${cell.dataset.quantization}`;
  const rows = () => [...el.querySelectorAll("tr[data-model]")].filter((row) => row.querySelector("[data-quantization]"));

  function mark(reveal) {
    const picked = find(model.get("picked"));
    el.querySelector("[aria-selected]")?.removeAttribute("aria-selected");
    picked?.setAttribute("aria-selected", "true");
    enterAt(picked || el.querySelector("[data-quantization]"));
    if (picked && reveal) show(picked);
  }

  function enterAt(cell) { // the one cell that the Tab key comes to
    el.querySelector("[tabindex]")?.removeAttribute("tabindex");
    if (cell) cell.tabIndex = 0;
  }

  function show(cell) {
    const head = el.querySelector("thead").getBoundingClientRect().height;
    const box = el.getBoundingClientRect(), its = cell.getBoundingClientRect();
    if (its.top < box.top + head) el.scrollTop -= box.top + head - its.top;
    else if (its.bottom > box.bottom) el.scrollTop += its.bottom - box.bottom;
  }

  function draw() {
    const focused = el.contains(document.activeElement) && document.activeElement.dataset.quantization
      ? name(document.activeElement) : null;
    const top = el.scrollTop;
    el.innerHTML = model.get("html");
    const now = el.querySelector("tr[data-model]")?.dataset.model;
    el.scrollTop = now === first ? top : 0;
    mark(first === null);
    first = now ?? "";
    if (focused) step(find(focused));
  }

  function pick(cell) {
    model.set("picked", name(cell));
    model.save_changes();
    step(cell);
  }

  function step(cell) {
    if (!cell) return;
    enterAt(cell);
    cell.focus({ preventScroll: true });
  }

  el.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-quantization]");
    if (cell) pick(cell);
  });
  el.addEventListener("keydown", (event) => {
    const cell = event.target.closest("[data-quantization]");
    if (!cell || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") pick(cell);
    else if (event.key in MOVES) move(cell, ...MOVES[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  function move(cell, down, right) {
    const all = rows(), clamp = (n, most) => Math.min(Math.max(n, 0), most);
    const here = cell.closest("tr"), inRow = [...here.querySelectorAll("[data-quantization]")];
    const there = all[clamp(all.indexOf(here) + down, all.length - 1)].querySelectorAll("[data-quantization]");
    const next = there[clamp(inRow.indexOf(cell) + right, there.length - 1)];
    step(next);
    show(next);
  }

  const redraw = () => draw(), remark = () => mark(true);
  model.on("change:html", redraw);
  model.on("change:picked", remark);
  draw();
  requestAnimationFrame(() => mark(true)); // once the page has laid the table out
  return () => {
    model.off("change:html", redraw);
    model.off("change:picked", remark);
  };
}

export default { render };
