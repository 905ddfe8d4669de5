// The table of rows: one row a pair, with what each judge said; filtered, searched and sorted over all rows of the data.

const rowsOf = (box) => {
  const { judges, grades, rows } = readData(box);
  const state = { show: "all", gold: "", given: "", kind: "", search: "", sort: "", down: false };
  const gradeOf = (row, judge) => row.said[judge].grade ?? null;
  const isWrong = (row, judge) => row.gold !== undefined && gradeOf(row, judge) !== row.gold;
  const top = (row, judge) => (row.said[judge].probs ? Math.max(...row.said[judge].probs) : -1);
  const texts = rows.map((row) => [row.q, row.t, ...Object.values(row.more ?? {}), ...row.said.map((one) => one.reply ?? "")]
    .join("\n").toLowerCase());
  const graded = rows.some((row) => row.gold !== undefined), two = judges.length > 1;
  const name = (judge) => (two ? `${judge < 26 ? String.fromCharCode(65 + judge) : judge + 1}` : "");

  const shows = [["all", "all rows"]];
  if (graded) shows.push(["wrong", two ? "any judge wrong" : "wrong"], ["right", two ? "all judges right" : "right"]);
  if (graded && judges.length === 2) shows.push(["ab", "A right, B wrong"], ["ba", "A wrong, B right"]);
  if (two) shows.push(["differ", "judges differ"]);
  const keep = {
    all: () => true,
    wrong: (row) => judges.some((_, judge) => isWrong(row, judge)),
    right: (row) => row.gold !== undefined && judges.every((_, judge) => !isWrong(row, judge)),
    ab: (row) => row.gold !== undefined && !isWrong(row, 0) && isWrong(row, 1),
    ba: (row) => isWrong(row, 0) && !isWrong(row, 1),
    differ: (row) => judges.some((_, judge) => gradeOf(row, judge) !== gradeOf(row, 0)),
  };

  if (two) {
    const key = add(box, "p", "", { className: "quiet" });
    judges.forEach((text, judge) => { add(key, "span", `${name(judge)}: `); add(key, "bdi", text); add(key, "br"); });
  }
  const controls = add(box, "div", "", { className: "controls" });
  const any = [["", "any"]], byGrade = [4, 3, 2, 1].map((grade) => [String(grade), grades[grade]]);
  const set = (what) => (value) => { state[what] = value; update(); };
  control(controls, "Show", shows, set("show"));
  if (graded) control(controls, "Gold grade", [...any, ...byGrade], set("gold"));
  control(controls, two ? "Grade given by A" : "Grade given", [...any, ...byGrade, ["null", "unread"]], set("given"));
  const kinds = [...new Set(rows.map((row) => row.kind ?? ""))].sort();
  if (kinds.length > 1 || kinds[0]) {  // the first character keeps "any" apart from a kind of that name
    control(controls, "Kind of query", [...any, ...kinds.map((kind) => [`=${kind}`, kind || "(none)"])], set("kind"));
  }
  control(controls, "Search in all texts", null, set("search"));

  const columns = [["Query", "q", (row) => row.q], ["Product", "t", (row) => row.t ?? ""]];
  if (graded) columns.push(["Gold", "gold", (row) => row.gold ?? 0]);
  judges.forEach((_, judge) => {
    columns.push([`Given ${name(judge)}`.trim(), `given${judge}`, (row) => gradeOf(row, judge) ?? 0]);
    if (rows.some((row) => row.said[judge].probs)) {
      columns.push([`Confidence ${name(judge)}`.trim(), `top${judge}`, (row) => top(row, judge)]);
    }
  });
  const scroll = add(box, "div", "", { className: "scroll", tabIndex: 0, data: { role: "group", "aria-label": "Rows" } });
  const table = add(scroll, "table", "", { className: "browse" });
  const head = add(add(table, "thead"), "tr"), body = add(table, "tbody");
  add(head, "th", "More", { scope: "col" });
  const heads = columns.map(([title, key]) => {
    const cell = add(head, "th", "", { scope: "col", className: key === "q" || key === "t" ? "wide" : "" });
    add(cell, "button", title, { type: "button" }).addEventListener("click", () => {
      state.down = state.sort === key ? !state.down : key !== "q" && key !== "t";
      state.sort = key;
      update();
    });
    return cell;
  });

  const detail = (cell, row) => {
    const inside = add(cell, "div", "", { className: "detail" }), facts = add(inside, "dl");
    for (const [what, text] of Object.entries({ query: row.q, title: row.t, "kind of query": row.kind, ...row.more })) {
      if (text) { add(facts, "dt", what); add(facts, "dd", "").append(Object.assign(document.createElement("bdi"), { textContent: text })); }
    }
    if (row.outside) add(inside, "p", `Outside of what the judge${two ? " A" : ""} has learned: ${row.outside}.`);
    row.said.forEach((one, judge) => {
      if (two) add(inside, "h3", `${name(judge)}: ${judges[judge]}`);
      const says = [one.grade ? `grade ${grades[one.grade]}` : "no grade could be read"];
      if (one.tier) says.push(`tier ${one.tier}`);
      if (one.mass !== undefined) says.push(`label mass ${fixed(one.mass)}`);
      if (one.decision) says.push(`its Decision line says ${grades[one.decision]}`);
      if (one.implied) says.push(`its steps imply ${grades[one.implied]}`);
      add(inside, "p", says.join(", "));
      if (one.probs) probabilities(inside, one.probs);
      if (one.reply) add(inside, "pre", one.reply, { className: "text" });
    });
  };

  const draw = (part) => {
    body.replaceChildren();
    for (const row of part) {
      const line = add(body, "tr");
      const more = add(add(line, "td"), "button", "Why", { type: "button", data: { "aria-expanded": "false" } });
      add(line, "td", "").append(Object.assign(document.createElement("bdi"), { textContent: row.q }));
      add(line, "td", "").append(Object.assign(document.createElement("bdi"), { textContent: row.t ?? "" }));
      if (graded) add(line, "td", row.gold ? grades[row.gold] : "-");
      judges.forEach((_, judge) => {
        const grade = gradeOf(row, judge), wrong = isWrong(row, judge);
        const shown = grade ? grades[grade] : "unread";
        add(line, "td", wrong ? `✗ ${shown}` : shown, { className: wrong ? "wrong" : "" });
        if (columns.some(([, key]) => key === `top${judge}`)) add(line, "td", row.said[judge].probs ? fixed(top(row, judge)) : "-");
      });
      more.addEventListener("click", () => {
        const open = more.getAttribute("aria-expanded") === "true";
        more.setAttribute("aria-expanded", String(!open));
        if (open) { line.nextSibling.remove(); return; }
        const below = document.createElement("tr");
        detail(add(below, "td", "", { colSpan: columns.length + 1 }), row);
        line.after(below);
      });
    }
  };
  const restart = pager(box, 50, "rows", draw);

  const update = () => {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.map((row, place) => [row, place]).filter(([row, place]) => keep[state.show](row)
      && (!state.gold || String(row.gold) === state.gold)
      && (!state.given || String(gradeOf(row, 0)) === state.given)
      && (!state.kind || `=${row.kind ?? ""}` === state.kind)
      && words.every((word) => texts[place].includes(word)));
    const column = columns.find(([, key]) => key === state.sort);
    if (column) {
      const value = column[2], way = state.down ? -1 : 1;
      found.sort(([a, i], [b, j]) => {
        const x = value(a), y = value(b);
        return x < y ? -way : x > y ? way : i - j;
      });
    }
    columns.forEach(([, key], place) => {
      heads[place].setAttribute("aria-sort", key !== state.sort ? "none" : state.down ? "descending" : "ascending");
    });
    restart(found.map(([row]) => row));
  };
  update();
};
document.querySelectorAll(".rows").forEach(rowsOf);
