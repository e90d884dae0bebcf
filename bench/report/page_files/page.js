// Sorting, filtering and the two lists that are made from data. Without this script the page still shows its tables.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 100;

  const make = (tag, text, classes) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (classes) element.className = classes;
    return element;
  };

  // Numbers before texts, what is absent last whatever the direction.
  const compare = (one, other, down) => {
    if (one === other) return 0;
    if (one === "" || one === null || one === undefined) return 1;
    if (other === "" || other === null || other === undefined) return -1;
    const both = typeof one === "number" && typeof other === "number";
    const order = both ? one - other : String(one).localeCompare(String(other), undefined, { numeric: true });
    return down ? -order : order;
  };

  const markSorted = (headings, chosen, down) => {
    for (const heading of headings) heading.removeAttribute("aria-sort");
    chosen.setAttribute("aria-sort", down ? "descending" : "ascending");
  };

  // A first click puts large numbers or the first letter on top; a second click turns the order round.
  const nextDirection = (heading) => {
    const sorted = heading.getAttribute("aria-sort");
    return sorted ? sorted === "ascending" : !heading.classList.contains("text");
  };

  const sortValue = (cell) => {
    const text = cell.dataset.sort ?? cell.textContent.trim().replace(/[,%+]|^–$/g, "");
    return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const down = nextDirection(heading);
        const rows = [...table.tBodies[0].rows].map((row) => [sortValue(row.cells[column]), row]);
        rows.sort(([one], [other]) => compare(one, other, down));
        table.tBodies[0].append(...rows.map(([, row]) => row));
        markSorted(headings, heading, down);
      });
    });
  }

  for (const input of document.querySelectorAll(".row-filter")) {
    const table = document.getElementById(input.dataset.table);
    const count = document.querySelector(`[data-count="${input.dataset.table}"]`);
    const apply = () => {
      const wanted = input.value.trim().toLowerCase();
      const rows = [...table.tBodies[0].rows];
      for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      const shown = rows.filter((row) => !row.hidden).length;
      count.textContent = `${shown} of ${rows.length} configurations`;
    };
    input.addEventListener("input", apply);
    apply();
  }

  // Long lists are made when their part of the page is opened, so that the page itself opens at once.
  const whenOpened = (id, make) => {
    const details = document.getElementById(id);
    if (!details) return;
    const once = () => {
      if (!details.open) return;
      details.removeEventListener("toggle", once);
      make();
    };
    details.addEventListener("toggle", once);
    once();
  };

  // All trials: rows are arrays, made into elements as far as they are shown.
  whenOpened("trial-fold", () => {
    const { columns, rows } = data.trials;
    const table = document.getElementById("trial-table");
    const [input, count, more] = ["trial-text", "trial-count", "trial-more"].map((id) => document.getElementById(id));
    const texts = rows.map((row) => row.join(" ").toLowerCase());
    let order = rows.map((_, index) => index);
    let limit = PAGE;
    const render = () => {
      const wanted = input.value.trim().toLowerCase();
      const found = order.filter((index) => texts[index].includes(wanted));
      const shown = found.slice(0, limit).map((index) => {
        const row = make("tr");
        rows[index].forEach((value, column) => {
          const { text, decimals } = columns[column];
          const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
          const shownValue = typeof value === "number" && decimals !== null ? value.toLocaleString("en", digits) : value;
          row.append(make(column === 0 ? "th" : "td", shownValue ?? "–", text ? "text" : ""));
        });
        return row;
      });
      table.tBodies[0].replaceChildren(...shown);
      count.textContent = `${found.length} of ${rows.length} trials`;
      more.hidden = found.length <= limit;
    };
    const heading = make("tr");
    columns.forEach((column, index) => {
      const cell = make("th", undefined, column.text ? "text" : "");
      const button = make("button", column.title);
      button.type = "button";
      button.addEventListener("click", () => {
        const down = nextDirection(cell);
        order.sort((one, other) => compare(rows[one][index], rows[other][index], down));
        markSorted([...heading.cells], cell, down);
        render();
      });
      cell.append(button);
      heading.append(cell);
    });
    table.tHead.append(heading);
    input.addEventListener("input", () => { limit = PAGE; render(); });
    more.addEventListener("click", () => { limit += 5 * PAGE; render(); });
    render();
  });

  // Predictions of several configurations for the same source.
  if (data.predictions) whenOpened("prediction-fold", () => {
    const { configurations, sources, metric } = data.predictions;
    const [input, tagChoice, order, methods, count, list, more] = [
      "text", "tag", "order", "methods", "count", "list", "more",
    ].map((name) => document.getElementById(`prediction-${name}`));
    let limit = 20;
    const visible = configurations.map(() => true);
    configurations.forEach((name, index) => {
      const label = make("label");
      const box = make("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => { visible[index] = box.checked; render(); });
      label.append(box, ` ${name}`);
      methods.append(label);
    });
    for (const tag of [...new Set(sources.flatMap((source) => source.tags))].sort()) tagChoice.append(make("option", tag));
    tagChoice.parentElement.hidden = tagChoice.options.length < 2;
    if (metric) {
      for (const [value, text] of [["worst", "worst first"], ["best", "best first"]]) {
        const option = make("option", `${text} (mean ${metric.title})`);
        option.value = value;
        order.append(option);
      }
    }
    const scoreOf = (source, index) => (metric && source.scores[index] ? source.scores[index][metric.name] : undefined);
    const chosen = (source) => source.predictions.filter((text, index) => visible[index] && text !== null);
    const distinct = (source) => new Set(chosen(source)).size;
    const meanScore = (source) => {
      const scores = configurations.map((_, index) => (visible[index] ? scoreOf(source, index) : undefined)).filter((score) => score !== undefined);
      const mean = scores.reduce((sum, score) => sum + score, 0) / scores.length;
      return scores.length ? (metric.higher_is_better ? mean : -mean) : "";
    };
    const matches = (source, wanted, tag) =>
      (!tag || source.tags.includes(tag)) &&
      (!wanted || [source.source, ...source.references, ...chosen(source)].some((text) => text.toLowerCase().includes(wanted)));
    const highlighted = (text, wanted, tag, classes) => {
      const element = make(tag, undefined, classes);
      const at = wanted ? text.toLowerCase().indexOf(wanted) : -1;
      if (at < 0) element.textContent = text;
      else element.append(text.slice(0, at), make("mark", text.slice(at, at + wanted.length)), text.slice(at + wanted.length));
      return element;
    };
    const card = (source, wanted) => {
      const article = make("article", undefined, "prediction");
      const heading = make("header");
      heading.append(highlighted(source.source, wanted, "span", "source"));
      heading.append(make("span", [source.id, ...source.tags].join(" · "), "tags"));
      const rows = make("dl");
      configurations.forEach((name, index) => {
        if (!visible[index] || source.predictions[index] === null) return;
        const score = scoreOf(source, index);
        const text = source.predictions[index] || "(empty)";
        rows.append(make("dt", name), highlighted(text, wanted, "dd", ""), make("dd", score === undefined ? "" : score.toFixed(1), "score"));
      });
      source.references.forEach((text, index) => {
        rows.append(make("dt", index ? "" : "references"), highlighted(text, wanted, "dd", "reference"), make("dd"));
      });
      if (source.more_references) rows.append(make("dt"), make("dd", `and ${source.more_references} more`, "reference"), make("dd"));
      article.append(heading, rows);
      return article;
    };
    const render = () => {
      const wanted = input.value.trim().toLowerCase();
      const found = sources.filter((source) => matches(source, wanted, tagChoice.value));
      if (order.value === "differ") found.sort((one, other) => distinct(other) - distinct(one));
      if (order.value === "worst") found.sort((one, other) => compare(meanScore(one), meanScore(other), false));
      if (order.value === "best") found.sort((one, other) => compare(meanScore(one), meanScore(other), true));
      list.replaceChildren(...found.slice(0, limit).map((source) => card(source, wanted)));
      count.textContent = `${found.length} of ${sources.length} sources`;
      more.hidden = found.length <= limit;
    };
    for (const control of [input, tagChoice, order]) control.addEventListener("input", () => { limit = 20; render(); });
    more.addEventListener("click", () => { limit += 50; render(); });
    render();
  });

  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // A link to a section opens what is folded in it.
  const reveal = () => {
    const section = location.hash && document.getElementById(location.hash.slice(1));
    const folded = section && section.querySelector(":scope > details.fold[id]");
    if (folded) folded.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
