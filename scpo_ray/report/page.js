"use strict";
(() => {
  const all = (where, what) => [...where.querySelectorAll(what)];
  const text = (cell) => {
    const parts = cell.querySelector("b") ? all(cell, "b, small") : [cell];
    return parts.map((p) => p.textContent.trim()).join(" ").replace(/\s+/g, " ");
  };
  const head = (cell) => (cell.querySelector("bdi") || cell.firstChild || cell).textContent.trim();
  const number = (cell) => {
    const main = (cell.querySelector("b") || cell.querySelector("bdi") || cell).textContent;
    const found = /[+-]?[\d.]+(e[+-]?\d+)?/i.exec(main.replace(/−/g, "-").replace(/,/g, ""));
    return found && /^[\s+<=−-]*[\d.]/.test(main.trim()) ? parseFloat(found[0]) : null;
  };

  // Sorting: numbers from the highest, then names; what has no number stays last.
  const sort = (table, place, header) => {
    const down = header.getAttribute("aria-sort") !== "descending";
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => {
      const cell = row.cells[place];
      const value = number(cell);
      return { row, value, name: text(cell), none: value === null && /^–?$/.test(text(cell)) };
    });
    const numeric = rows.some((r) => r.value !== null);
    const sign = down ? -1 : 1;
    rows.sort((a, b) => {
      if (a.none !== b.none) return a.none ? 1 : -1;
      if (!numeric) return -sign * a.name.localeCompare(b.name);
      if ((a.value === null) !== (b.value === null)) return a.value === null ? 1 : -1;
      return sign * ((a.value || 0) - (b.value || 0));
    });
    all(table, "thead th").forEach((th) => th.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows.map((r) => r.row));
  };

  // Copying: every number with its interval, as CSV or as Markdown.
  const grid = (table) => [
    [...table.tHead.rows[0].cells].filter((c) => !c.hidden).map(text),
    ...[...table.tBodies[0].rows].filter((r) => !r.hidden)
      .map((r) => [...r.cells].filter((c) => !c.hidden).map(text)),
  ];
  const csv = (rows) => rows.map((r) => r.map((c) => `"${c.replace(/"/g, '""')}"`).join(",")).join("\n");
  const markdown = (rows) => {
    const line = (r) => `| ${r.map((c) => c.replace(/\|/g, "\\|")).join(" | ")} |`;
    return [line(rows[0]), line(rows[0].map(() => "---")), ...rows.slice(1).map(line)].join("\n");
  };
  const copy = async (said, button) => {
    try {
      await navigator.clipboard.writeText(said);
    } catch {
      const area = document.createElement("textarea");
      area.value = said;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const before = button.textContent;
    button.textContent = "copied";
    setTimeout(() => { button.textContent = before; }, 1200);
  };

  for (const table of all(document, "table")) {
    if (!table.tHead) continue;
    [...table.tHead.rows[0].cells].forEach((header, place) => {
      header.classList.add("sorts");
      header.tabIndex = 0;
      header.addEventListener("click", () => sort(table, place, header));
      header.addEventListener("keydown", (e) => {
        if (e.key === "Enter") sort(table, place, header);
      });
    });
    const caption = table.caption || table.createCaption();
    const tools = document.createElement("span");
    tools.className = "tools";
    for (const [name, form] of [["CSV", csv], ["Markdown", markdown]]) {
      const button = document.createElement("button");
      button.textContent = name;
      button.title = `copy this table as ${name}`;
      button.addEventListener("click", () => copy(form(grid(table)), button));
      tools.append(button);
    }
    caption.append(tools);
  }

  // Picking: what is called by a name that is not picked is hidden, in tables and pictures.
  const main = document.querySelector("main");
  const names = JSON.parse(main.dataset.names || "{}");
  const off = new Set();
  const show = () => {
    for (const table of all(main, "table")) {
      if (!table.tHead) continue;
      const heads = [...table.tHead.rows[0].cells].map((c) => off.has(c.title || head(c)));
      for (const row of table.rows) {
        row.hidden = row.parentNode.tagName === "TBODY" && off.has(row.cells[0].title || head(row.cells[0]));
        [...row.cells].forEach((cell, place) => { cell.hidden = heads[place]; });
      }
    }
    for (const figure of all(main, "figure[data-name]")) figure.hidden = off.has(figure.dataset.name);
  };
  for (const [kind, of] of Object.entries(names)) {
    if (of.length < 2) continue;
    const box = document.createElement("details");
    box.className = "pick";
    box.innerHTML = `<summary>Pick ${kind}</summary>`;
    for (const name of of) {
      const row = document.createElement("label");
      const tick = document.createElement("input");
      tick.type = "checkbox";
      tick.checked = true;
      tick.addEventListener("change", () => {
        off[tick.checked ? "delete" : "add"](name);
        show();
      });
      row.append(tick, " ", name);
      box.append(row);
    }
    document.querySelector("nav").append(box);
  }

  // A link of the contents opens its topic; printing opens all.
  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const topic = target && target.closest("details");
    if (topic) {
      topic.open = true;
      target.scrollIntoView();
    }
  };
  addEventListener("hashchange", open);
  open();
})();
