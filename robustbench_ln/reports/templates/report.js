"use strict";
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const spoken = document.getElementById("spoken");

  function show(words, x, y) {
    tip.replaceChildren(...words.map((line) => {
      const p = document.createElement("p");
      p.textContent = line;
      return p;
    }));
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = x + 14 + width < innerWidth ? x + 14 : x - 14 - width;
    const top = y + 14 + height < innerHeight ? y + 14 : y - 14 - height;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  }
  const hide = () => { tip.hidden = true; };
  const wordsOf = (node) => [...node.querySelectorAll("desc")].map((one) => one.textContent);

  // Charts: the level nearest to the pointer, or the next one by arrow keys.
  for (const chart of document.querySelectorAll("svg.chart")) {
    const guides = [...chart.querySelectorAll("g.level")];
    if (!guides.length) continue;
    let at = -1;
    const place = (index) => {
      at = index;
      guides.forEach((g, i) => g.firstElementChild.classList.toggle("on", i === at));
    };
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
      const gaps = guides.map((g) => Math.abs(Number(g.dataset.x) - x));
      place(gaps.indexOf(Math.min(...gaps)));
      show(wordsOf(guides[at]), event.clientX, event.clientY);
    });
    const leave = () => { place(-1); hide(); };
    chart.addEventListener("pointerleave", leave);
    chart.addEventListener("blur", leave);
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") leave();
      if (!step) return;
      event.preventDefault();
      place(Math.min(Math.max(at + step, 0), guides.length - 1));
      const box = chart.getBoundingClientRect();
      const x = box.left + (Number(guides[at].dataset.x) / chart.viewBox.baseVal.width) * box.width;
      show(wordsOf(guides[at]), x, box.top + box.height / 4);
      spoken.textContent = wordsOf(guides[at]).join(", ");
    });
  }

  // Cells of heat maps.
  for (const table of document.querySelectorAll("table.heat")) {
    table.addEventListener("pointermove", (event) => {
      const cell = event.target.closest("td[data-tip]");
      if (cell) show([cell.parentElement.firstElementChild.textContent + ", " + cell.dataset.at, cell.dataset.tip], event.clientX, event.clientY);
      else hide();
    });
    table.addEventListener("pointerleave", hide);
  }

  // One of several blocks at a time.
  for (const select of document.querySelectorAll("select[data-for]")) {
    const blocks = [...document.querySelectorAll(`[data-choice="${select.dataset.for}"]`)];
    const choose = () => blocks.forEach((block, i) => { block.hidden = i !== select.selectedIndex; });
    select.addEventListener("change", choose);
    select.closest(".controls").hidden = false;
    choose();
  }

  // Tables that sort by a column: numbers by data-v, names by their text.
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    for (const button of table.tHead.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        const head = button.closest("th");
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const column = head.cellIndex;
        const compare = (a, b) => {
          const [x, y] = [a.cells[column], b.cells[column]];
          const [v, w] = [x.dataset.v, y.dataset.v];
          if (v === "" || w === "") return (v === "") - (w === "");
          const order = v !== undefined && w !== undefined ? Number(v) - Number(w) : x.textContent.localeCompare(y.textContent);
          return up ? order : -order;
        };
        body.append(...[...body.rows].sort(compare));
      });
    }
  }

  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme
      ? document.documentElement.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
})();
