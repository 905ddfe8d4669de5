// The groups of a GRPO run: one step at a time, every group with its replies, rewards and advantages.

const groupsOf = (box) => {
  const { why, groups } = readData(box);
  const steps = [...new Set(groups.map((group) => group.step))];
  const state = { step: String(steps[0]), outcome: "any", search: "" };
  const outcome = (group) => group.dropped || "trained on";
  const controls = add(box, "div", "", { className: "controls" });
  const set = (what) => (value) => { state[what] = value; update(); };
  const stepField = control(controls, "Step", [...steps.map((step) => [String(step), `step ${step}`]), ["any", "all steps"]], set("step"));
  const move = (by) => {
    const place = steps.map(String).indexOf(state.step) + by;
    if (place < 0 || place >= steps.length) return;
    stepField.value = state.step = String(steps[place]);
    update();
  };
  add(controls, "button", "Previous step", { type: "button" }).addEventListener("click", () => move(-1));
  add(controls, "button", "Next step", { type: "button" }).addEventListener("click", () => move(1));
  const outcomes = [...new Set(groups.map(outcome))].sort();
  control(controls, "Outcome", [["any", "any"], ...outcomes.map((one) => [`=${one}`, one])], set("outcome"));
  control(controls, "Search in queries, titles and replies", null, set("search"));
  const list = add(box, "div");

  const repliesOf = (inside, group) => {
    const scroll = add(inside, "div", "", { className: "scroll", tabIndex: 0,
      data: { role: "group", "aria-label": `Replies on ${group.query}` } });
    const table = add(scroll, "table", "", { className: "browse" });
    const head = add(add(table, "thead"), "tr"), body = add(table, "tbody");
    for (const title of ["Reply", "Times", "Label", "Reward", "Advantage"]) add(head, "th", title, { scope: "col" });
    for (const one of group.replies) {
      const line = add(body, "tr"), cell = add(line, "td", "", { className: "wide" });
      if (one.source && one.source !== "model") add(cell, "b", `from the ${one.source}`);
      add(cell, "pre", one.text, { className: "text" });
      add(line, "td", `${one.times} ×`);
      const wrong = one.label !== group.gold;
      add(line, "td", wrong ? `✗ ${one.label ?? "unread"}` : `${one.label}`, { className: wrong ? "wrong" : "" });
      const parts = Object.entries(one.parts);
      const shown = parts.length > 1 ? ` (${parts.map(([what, value]) => `${what} ${fixed(value, 2)}`).join(", ")})` : "";
      add(line, "td", fixed(one.reward, 2) + shown);
      add(line, "td", one.advantage === null ? "-" : fixed(one.advantage, 3));
    }
  };

  const draw = (part) => {
    list.replaceChildren();
    for (const group of part) {
      const inside = add(list, "article", "", { className: group.dropped ? "group" : "group kept" });
      const title = add(inside, "h3", "");
      add(title, "bdi", group.query);
      add(title, "span", " | ");
      add(title, "bdi", group.title ?? "");
      add(inside, "p", `Step ${group.step}. Gold ${group.gold}; ${group.right} of ${group.size} replies are right. `
        + `${group.dropped ? "Dropped" : "Kept"}: ${why[group.dropped ?? ""] ?? group.dropped}.`);
      if (group.replies.length) repliesOf(inside, group);
      else add(inside, "p", `Only first tokens were drawn; labels ${(group.labels ?? []).map((label) => label ?? "unread").join(" ")}.`);
    }
  };
  const restart = pager(box, 5, "groups", draw);

  const update = () => {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    restart(groups.filter((group) => (state.step === "any" || String(group.step) === state.step)
      && (state.outcome === "any" || `=${outcome(group)}` === state.outcome)
      && words.every((word) => [group.query, group.title ?? "", ...group.replies.map((one) => one.text)]
        .join("\n").toLowerCase().includes(word))));
  };
  update();
};
document.querySelectorAll(".groups").forEach(groupsOf);
