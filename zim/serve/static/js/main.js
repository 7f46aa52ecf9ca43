// Everything that is wired together: files, prompts to mattes, panel, keys, downloads.
import { base64, embed, info, post } from "./api.js";
import { decode, thumbnail } from "./mattes.js";
import { Store, colourOf } from "./store.js";
import { drawTab } from "./tabs.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const all = (query) => [...document.querySelectorAll(query)];
const state = { blob: null, name: "picture", id: null, opening: null, backBlob: null, service: null };
let timer = null;

function say(text, kind = "", ms = 0) {
  clearTimeout(timer);
  $("status").textContent = text;
  $("status").className = `status ${text ? "show" : ""} ${kind}`;
  if (ms) timer = setTimeout(() => say(""), ms);
}

const store = new Store(() => changed());
const view = new View($("canvas"), store, {
  click: (point) => store.edit((s) => s.current.points.push(point) && (s.current.candidate = 0)),
  box: (box) => store.edit((s) => Object.assign(s.current, { box, candidate: 0 })),
  stroke: (stroke) => store.edit((s) => s.current.scribble.push(stroke) && (s.current.candidate = 0)),
  zoomed: (scale) => ($("fit").textContent = `${Math.round(scale * 100)}%`),
});

// Opening a picture.

async function open(blob, name = "picture") {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    return say("This file is no picture the browser can show. Try PNG, JPEG or WebP.", "bad");
  }
  const most = state.service?.limits.bytes;
  if (most && blob.size > most) return say(`The file is larger than ${Math.round(most / 2 ** 20)} MB.`, "bad");
  Object.assign(state, { blob, name: name.replace(/\.[^.]*$/, "") || "picture", id: null });
  document.body.classList.add("has");
  $("empty").hidden = true;
  store.reset();
  closeAfter();
  $("found").replaceChildren();
  view.open(bitmap);
  changed();
  return encode();
}

function encode() {
  const model = $("model").value;
  const known = state.service?.models.find((m) => m.name === model);
  say(known?.state === "ready" ? "Looking at the picture…" : `Loading ${model} and looking at the picture…`, "busy");
  const opening = (state.opening = embed(state.blob, model)
    .then((answer) => {
      if (state.opening !== opening) return answer.id;
      state.id = answer.id;
      say("Click on what you want to keep.", "", 3500);
      refreshModels();
      return answer.id;
    })
    .catch((error) => {
      if (state.opening === opening) {
        say(error.message, "bad");
        refreshModels();
      }
      throw error;
    }));
  opening.catch(() => {});
  return opening;
}

const embedding = () => (state.id ? Promise.resolve(state.id) : state.opening || encode());

// The service forgets embeddings to make room; then the picture is sent again.
async function asked(path, body, signal) {
  try {
    return await post(path, { ...body, embedding: await embedding() }, signal);
  } catch (error) {
    if (error.status !== 404) throw error;
    state.id = state.opening = null;
    return post(path, { ...body, embedding: await encode() }, signal);
  }
}

// Prompts to mattes.

const running = new Map();

async function ask(object) {
  const key = store.key(object);
  if (Store.empty(object) || store.mattes.has(key)) return;
  running.get(object.number)?.abort();
  const abort = new AbortController();
  running.set(object.number, abort);
  const late = setTimeout(() => say("Working…", "busy"), 400);
  const start = performance.now();
  try {
    const answer = await (await asked("v1/matte", { ...Store.prompt(object), preview: true }, abort.signal)).json();
    const [one] = answer.objects[0].candidates;
    store.keep(key, { ...(await decode(one.alpha)), score: one.score });
    document.body.dataset.latency = Math.round(performance.now() - start);
    say("");
  } catch (error) {
    if (error.name === "AbortError") return;
    say(error.message, "bad");
  } finally {
    clearTimeout(late);
    if (running.get(object.number) === abort) running.delete(object.number);
  }
  document.body.dataset.answers = Number(document.body.dataset.answers || 0) + 1;
  list();
  view.refresh();
  suggest();
}

function changed() {
  list();
  view.refresh();
  suggest();
  store.objects.forEach(ask);
}

// Alternatives are fetched when the clicking pauses, so that they never delay an answer.

let waiting = null;
let shownFor = null;

function suggest() {
  clearTimeout(waiting);
  const object = store.current;
  const base = { ...object, candidate: 0 };
  const key = store.key(base);
  const ready = !Store.empty(object) && store.mattes.has(key);
  if (shownFor !== key) $("alternatives").hidden = true;
  if (!ready) return;
  if (shownFor === key) return picked();
  waiting = setTimeout(async () => {
    try {
      const prompt = Store.prompt(base);
      const answer = await (await asked("v1/matte", { ...prompt, candidates: 3, preview: true })).json();
      const rows = [{ number: 0, matte: store.mattes.get(key) }];
      for (const one of answer.objects[0].candidates) {
        const matte = { ...(await decode(one.alpha)), score: one.score };
        store.keep(store.key({ ...base, candidate: one.candidate }), matte);
        rows.push({ number: one.candidate, matte });
      }
      if (store.key({ ...store.current, candidate: 0 }) !== key || !rows[0].matte) return;
      shownFor = key;
      $("candidates").replaceChildren(
        ...rows.map(({ number, matte }) => {
          const button = document.createElement("button");
          button.dataset.candidate = number;
          button.title = number ? `Alternative ${number}` : "The answer";
          const canvas = document.createElement("canvas");
          thumbnail(matte, canvas);
          button.append(canvas, `${Math.round(100 * matte.score)}%`);
          button.onclick = () => choose(number);
          return button;
        }),
      );
      picked();
    } catch (error) {
      if (error.status !== 429) say(error.message, "bad");
    }
  }, 450);
}

const choose = (number) => store.edit((s) => (s.current.candidate = number));

function picked() {
  $("alternatives").hidden = false;
  all("#candidates button").forEach((b) => b.classList.toggle("on", Number(b.dataset.candidate) === store.current.candidate));
}

// The panel.

function list() {
  $("objects").replaceChildren(
    ...store.objects.map((object, index) => {
      const row = document.createElement("li");
      row.className = index === store.active ? "on" : "";
      const dot = document.createElement("i");
      dot.className = "dot";
      dot.style.background = `rgb(${colourOf(object).join(",")})`;
      const name = document.createElement("span");
      name.textContent = object.label || `Object ${object.number}`;
      const note = document.createElement("small");
      const matte = store.matte(object);
      note.textContent = Store.empty(object) ? "click the picture" : matte ? `${Math.round(100 * matte.score)}%` : "…";
      const drop = document.createElement("button");
      drop.textContent = "✕";
      drop.title = "Remove this object (Delete)";
      drop.onclick = (event) => {
        event.stopPropagation();
        store.edit((s) => s.remove(index));
      };
      row.append(dot, name, note, drop);
      row.onclick = () => {
        store.active = index;
        changed();
      };
      return row;
    }),
  );
  const ready = store.filled().some((o) => store.matte(o));
  $("download").disabled = !ready;
  $("auto").disabled = !state.blob;
  $("undo").disabled = store.at === 0;
  $("redo").disabled = store.at === store.past.length - 1;
}

function show(mode) {
  view.mode = mode;
  all("#views button").forEach((b) => b.classList.toggle("on", b.dataset.view === mode));
  view.draw();
}

function setBack(back) {
  view.back = back;
  all("#backs button, .colour").forEach((b) => b.classList.remove("on"));
  const known = document.querySelector(`#backs [data-back="${back}"]`);
  (known || (back === "picture" ? $("backpic") : document.querySelector(".colour"))).classList.add("on");
  if (view.mode !== "cutout") show("cutout");
  view.draw();
}

function tool(name) {
  view.tool = name;
  all("[data-tool]").forEach((b) => b.classList.toggle("on", b.dataset.tool === name));
  $("canvas").style.cursor = name === "pan" ? "grab" : "crosshair";
}

function sign() {
  view.negative = !view.negative;
  $("sign").setAttribute("aria-pressed", view.negative);
  $("sign").firstChild.textContent = view.negative ? "−" : "+";
}

// Files out.

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function download() {
  const [output, format, bits] = $("kind").value.split(",");
  const body = { objects: objects(), output, format, bits: Number(bits), refine: $("refine").checked };
  if (output === "composite") {
    if (view.back === "picture") body.background_image = await base64(state.backBlob);
    else body.background = view.back === "checker" ? "white" : view.back;
  }
  $("download").disabled = true;
  say("Preparing the file at full size…", "busy");
  try {
    const blob = await (await asked("v1/matte", body)).blob();
    save(blob, `${state.name}.${output}.${format}`);
    say("Saved.", "", 2000);
  } catch (error) {
    say(error.message, "bad");
  } finally {
    list();
  }
}

const objects = () => store.filled().map(Store.prompt);

// Before and after.

async function after(url) {
  if (!url) return closeAfter();
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  canvas.getContext("2d").drawImage(image, 0, 0);
  view.after = canvas;
  $("compare").hidden = false;
  view.draw();
  return canvas.convertToBlob({ type: "image/png" });
}

function closeAfter() {
  view.after = null;
  $("compare").hidden = true;
  view.draw();
}

function take(found) {
  if (!found.length) return;
  store.edit((s) => {
    for (const one of found) s.add({ box: one.box.map((v) => Math.round(v * 10) / 10), label: one.phrase });
  });
}

async function everything() {
  $("auto").disabled = true;
  say("Finding everything; this takes a while on a CPU…", "busy");
  try {
    const answer = await (await asked("v1/auto", {})).json();
    const tiles = [];
    for (const one of answer.objects) {
      const tile = document.createElement("button");
      const canvas = document.createElement("canvas");
      thumbnail(await decode(one.alpha), canvas);
      tile.append(canvas, `${Math.round(100 * one.score)}%`);
      tile.onclick = () => {
        tile.classList.add("on");
        take([{ box: one.box, phrase: null }]);
      };
      tiles.push(tile);
    }
    $("found").replaceChildren(...tiles);
    say(tiles.length ? `Found ${tiles.length}.` : "Nothing was found.", "", 3000);
  } catch (error) {
    say(error.message, "bad");
  } finally {
    $("auto").disabled = false;
  }
}

// Tabs and models.

function tabs(extra) {
  const pages = [{ name: "cut", title: "Cut out" }, ...extra, { name: "auto", title: "Everything" }];
  $("tabs").replaceChildren(
    ...pages.map((page) => {
      const button = document.createElement("button");
      button.setAttribute("role", "tab");
      button.textContent = page.title;
      button.dataset.tab = page.name;
      button.onclick = () => turn(page);
      return button;
    }),
  );
  turn(pages[0]);
}

function turn(page) {
  all("#tabs button").forEach((b) => b.setAttribute("aria-selected", b.dataset.tab === page.name));
  $("page-cut").hidden = page.name !== "cut";
  $("page-auto").hidden = page.name !== "auto";
  $("page-tab").hidden = !page.endpoint;
  closeAfter();
  if (page.endpoint) drawTab($("page-tab"), page, { say, objects, embedding, after, save, open, take, ready: () => Boolean(state.blob) });
}

async function refreshModels() {
  state.service = await info();
  for (const option of $("model").options) {
    const row = state.service.models.find((m) => m.name === option.value);
    option.textContent = { failed: `${row.name} (failed)`, loading: `${row.name} (loading)` }[row.state] || row.name;
    option.title = row.error || "";
  }
}

async function start() {
  try {
    state.service = await info();
  } catch (error) {
    return say(error.status === 401 ? "This service needs a token: open the address that zim serve printed." : error.message, "bad");
  }
  for (const row of state.service.models) $("model").append(new Option(row.name, row.name));
  $("version").textContent = `zim ${state.service.version}`;
  tabs(state.service.tabs);
  document.body.dataset.ready = "1";
  return refreshModels();
}

// Wiring.

const pick = () => $("file").click();
$("open").onclick = $("open2").onclick = pick;
$("file").onchange = () => $("file").files[0] && open($("file").files[0], $("file").files[0].name) && ($("file").value = "");
all("[data-sample]").forEach((button) => {
  button.onclick = async () => open(await (await fetch(`samples/${button.dataset.sample}`)).blob(), button.dataset.sample);
});
all("[data-tool]").forEach((b) => (b.onclick = () => tool(b.dataset.tool)));
all("[data-view]").forEach((b) => (b.onclick = () => show(b.dataset.view)));
all("[data-back]").forEach((b) => (b.onclick = () => setBack(b.dataset.back)));
$("colour").oninput = () => setBack($("colour").value);
$("backpic").onclick = () => $("backfile").click();
$("backfile").onchange = async () => {
  state.backBlob = $("backfile").files[0];
  try {
    view.backBitmap = await createImageBitmap(state.backBlob);
    setBack("picture");
  } catch {
    say("This background is no picture the browser can show.", "bad");
  }
};
$("sign").onclick = sign;
$("undo").onclick = () => store.step(-1);
$("redo").onclick = () => store.step(1);
const clear = () => store.edit((s) => Object.assign(s, { objects: [{ ...s.objects[0], number: 1, points: [], box: null, scribble: [], candidate: 0, label: null }], active: 0 }));
$("clear").onclick = clear;
const add = () => store.edit((s) => s.add());
$("add").onclick = add;
$("in").onclick = () => view.zoom(1.3);
$("out").onclick = () => view.zoom(1 / 1.3);
$("fit").onclick = () => view.fit();
$("download").onclick = download;
$("auto").onclick = everything;
$("slider").oninput = () => ((view.split = $("slider").value / 100), view.draw());
$("help").onclick = () => $("keys").showModal();
$("model").onchange = () => {
  if (!state.blob) return;
  state.id = null;
  store.mattes.clear();
  shownFor = null;
  encode().then(changed, () => {});
};

const root = document.documentElement;
const theme = (name) => (root.dataset.theme = name);
theme(localStorage.getItem("zim-theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
$("theme").onclick = () => {
  theme(root.dataset.theme === "dark" ? "light" : "dark");
  localStorage.setItem("zim-theme", root.dataset.theme);
};

window.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
  if (file) open(file, file.name);
});
let over = 0;
const dragging = (by) => {
  over = by ? Math.max(0, over + by) : 0;
  $("drop").hidden = over === 0;
};
window.addEventListener("dragenter", () => dragging(1));
window.addEventListener("dragleave", () => dragging(-1));
window.addEventListener("dragover", (event) => event.preventDefault());
window.addEventListener("drop", (event) => {
  event.preventDefault();
  dragging(0);
  const file = event.dataTransfer.files[0];
  if (file) open(file, file.name);
});

const KEYS = {
  v: () => tool("click"), b: () => tool("brush"), h: () => tool("pan"), x: sign, n: add, o: pick, s: () => $("download").click(),
  m: () => show({ overlay: "cutout", cutout: "alpha", alpha: "overlay" }[view.mode]),
  "+": () => view.zoom(1.3), "=": () => view.zoom(1.3), "-": () => view.zoom(1 / 1.3), 0: () => view.fit(), "?": () => $("keys").showModal(),
};
window.addEventListener("keydown", (event) => {
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || $("keys").open) return;
  const command = event.ctrlKey || event.metaKey;
  const digit = /^Digit([0-3])$/.exec(event.code);
  if (command && event.key.toLowerCase() === "z") store.step(event.shiftKey ? 1 : -1);
  else if (command && event.key.toLowerCase() === "y") store.step(1);
  else if (command) return;
  else if (event.key === " ") view.space = true;
  else if (digit && (event.shiftKey || digit[1] !== "0") && !$("alternatives").hidden) choose(Number(digit[1]));
  else if (event.key === "Delete" || event.key === "Backspace") event.shiftKey ? clear() : store.edit((s) => s.remove(s.active));
  else if (KEYS[event.key.toLowerCase()]) KEYS[event.key.toLowerCase()]();
  else return;
  event.preventDefault();
});
window.addEventListener("keyup", (event) => {
  if (event.key === " ") view.space = false;
});

start();
