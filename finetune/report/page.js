"use strict";
// Enlarges pictures, with the frozen base's picture of the same noise beside them. The page reads well without it.
(() => {
  const viewer = document.getElementById("viewer");
  const part = (name) => viewer.querySelector(`[data-part="${name}"]`);
  let current = null;

  const tiles = (table) => Array.from(table.querySelectorAll("button.tile"));
  const place = (tile) => [Number(tile.dataset.row), Number(tile.dataset.column)];

  // The next picture of the same variant in a direction, skipping holes.
  function neighbour(tile, down, right) {
    const [row, column] = place(tile);
    const ahead = tiles(tile.closest("table")).filter((other) => {
      if (other.dataset.variant !== tile.dataset.variant) return false;
      const [otherRow, otherColumn] = place(other);
      return down
        ? otherColumn === column && (otherRow - row) * down > 0
        : otherRow === row && (otherColumn - column) * right > 0;
    });
    const distance = (other) => Math.abs(place(other)[0] - row) + Math.abs(place(other)[1] - column);
    return ahead.sort((a, b) => distance(a) - distance(b))[0] ?? null;
  }

  function show(tile) {
    current = tile;
    const image = tile.querySelector("img");
    const base = tiles(tile.closest("table")).find(
      (other) =>
        other.dataset.base === "yes" &&
        other.dataset.column === tile.dataset.column &&
        other.dataset.variant === tile.dataset.variant,
    );
    part("title").textContent = tile.dataset.heading;
    part("prompt").textContent = tile.dataset.prompt;
    part("notes").textContent = tile.dataset.notes;
    part("picture").src = image.src;
    part("picture").alt = image.alt;
    const beside = base && base !== tile && tile.dataset.base !== "none";
    part("beside").hidden = !beside;
    if (beside) {
      part("base").src = base.querySelector("img").src;
      part("base").alt = base.querySelector("img").alt;
    }
    for (const [name, down, right] of [["up", -1, 0], ["down", 1, 0], ["left", 0, -1], ["right", 0, 1]]) {
      part(name).disabled = neighbour(tile, down, right) === null;
    }
  }

  function move(down, right) {
    const next = current && neighbour(current, down, right);
    if (next) show(next);
  }

  const keys = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  viewer.addEventListener("keydown", (event) => {
    if (event.key in keys && !event.altKey && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      move(...keys[event.key]);
    }
  });
  for (const [name, step] of [["up", keys.ArrowUp], ["down", keys.ArrowDown], ["left", keys.ArrowLeft], ["right", keys.ArrowRight]]) {
    part(name).addEventListener("click", () => move(...step));
  }
  part("close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
  viewer.addEventListener("close", () => current && current.focus());
  document.addEventListener("click", (event) => {
    const tile = event.target.closest("button.tile");
    if (tile) {
      show(tile);
      viewer.showModal();
    }
  });
})();
