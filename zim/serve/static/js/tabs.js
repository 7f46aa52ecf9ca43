// Pages of other parts: a form drawn from what the service says, and what comes back.
function input(field) {
  const label = document.createElement("label");
  label.className = "field";
  const name = document.createElement("span");
  name.textContent = field.label;
  let control;
  if (field.kind === "choice") {
    control = document.createElement("select");
    for (const choice of field.choices) control.append(new Option(choice, choice));
    control.value = field.default;
  } else {
    control = document.createElement("input");
    control.type = { text: "text", number: "number", flag: "checkbox" }[field.kind];
    if (field.kind === "flag") control.checked = field.default;
    else control.value = field.default;
    if (field.kind === "number") Object.assign(control, { min: field.low, max: field.high, step: "any" });
    if (field.kind === "text") control.placeholder = field.hint;
  }
  control.dataset.name = field.name;
  label.append(name, control);
  if (field.hint && field.kind !== "text") {
    const hint = document.createElement("small");
    hint.textContent = field.hint;
    label.append(hint);
  }
  const read = () =>
    field.kind === "flag" ? control.checked : field.kind === "number" ? Number(control.value) : control.value;
  return { label, read };
}

export function drawTab(page, tab, app) {
  page.replaceChildren();
  const about = document.createElement("p");
  about.textContent = tab.summary + (tab.needs_matte ? " Select something first." : "");
  const inputs = tab.fields.map((field) => [field.name, input(field)]);
  const run = document.createElement("button");
  run.className = "primary";
  run.id = "run";
  run.textContent = tab.title;
  const actions = document.createElement("div");
  actions.className = "actions";
  page.append(about, ...inputs.map(([, one]) => one.label), run, actions);
  const work = async () => {
    if (run.disabled) return;
    if (!app.ready()) return app.say("Open a picture first.", "bad");
    if (tab.needs_matte && !app.objects().length) return app.say("Select an object first: click on it.", "bad");
    run.disabled = true;
    actions.replaceChildren();
    app.say(`${tab.title}: working…`, "busy");
    try {
      const body = { values: Object.fromEntries(inputs.map(([n, one]) => [n, one.read()])) };
      if (tab.needs_matte) body.objects = app.objects();
      const answer = await app.ask(tab.endpoint.slice(1), body);
      if (answer.image) await result(answer.image);
      app.say(answer.notes.join(" ") || "Done.", "", 4000);
      if (answer.objects) app.take(answer.objects);
    } catch (error) {
      app.failed(error);
      if (app.signal.aborted) app.say(`${tab.title}: stopped.`, "", 3000);
    } finally {
      run.disabled = false;
    }
  };
  async function result(url) {
    const blob = await app.after(url);
    const button = (text, act) => {
      const made = document.createElement("button");
      made.textContent = text;
      made.onclick = act;
      actions.append(made);
    };
    button("Download", () => app.save(blob, tab.name));
    button("Go on with this picture", () => app.open(blob));
    button("Back", app.back);
  }
  run.onclick = work;
  page.onkeydown = (event) => {
    if (event.key === "Enter" && event.target.tagName === "INPUT") work();
  };
}
