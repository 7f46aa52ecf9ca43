// Everything that is wired together: files, prompts to mattes, panel, keys, downloads.
import { base64, fetched, hasToken, info } from "./api.js";
import { decode, thumbnail } from "./mattes.js";
import { picture } from "./pictures.js";
import { Session } from "./session.js";
import { MOST, Store, colourOf } from "./store.js";
import { drawTab } from "./tabs.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const all = (query) => [...document.querySelectorAll(query)];
const state = { session: null, name: "picture", backBlob: null, service: null };
let timer = null;

function say(text, kind = "", ms = 0) {
  clearTimeout(timer);
  $("status").textContent = text;
  $("status").className = `status ${text ? "show" : ""} ${kind}`;
  if (ms) timer = setTimeout(() => say(""), ms);
}

// Say what went wrong, unless it was given up on purpose: another picture or model, a later prompt.
function failed(error) {
  if (error.name !== "AbortError") say(error.message, "bad");
}

const store = new Store(() => changed(), (sentence) => say(sentence, "bad", 5000));
const view = new View($("canvas"), store, {
  clicks: (points) => store.edit((s) => s.current.points.push(...points) && (s.current.candidate = 0)),
  box: (box) => store.edit((s) => Object.assign(s.current, { box, candidate: 0 })),
  stroke: (stroke) => store.edit((s) => s.current.scribble.push(stroke) && (s.current.candidate = 0)),
  back: () => closeAfter(),
  zoomed: (scale) => ($("fit").textContent = `${Math.round(scale * 100)}%`),
});

// Opening a picture.

let openings = 0;

async function open(blob, name = "picture") {
  openings += 1;
  const turn = openings;
  const most = state.service?.limits.bytes;
  let read;
  try {
    read = await picture(blob);
  } catch {
    if (turn === openings) say("This file is no picture the browser can show. Try PNG, JPEG or WebP.", "bad");
    return;
  }
  if (turn !== openings) return; // another one was chosen meanwhile
  if (most && read.blob.size > most) return say(`The file is larger than ${Math.round(most / 2 ** 20)} MB.`, "bad");
  state.name = name.replace(/\.[^.]*$/, "") || "picture";
  document.body.classList.add("has");
  $("empty").hidden = true;
  store.reset();
  closeAfter();
  $("found").replaceChildren();
  view.open(read.bitmap);
  await begin(read.blob);
}

// Let the service look at a picture, under the chosen model; what was asked about the one before is given up.
async function begin(blob) {
  state.session?.end();
  const session = (state.session = new Session(blob, $("model").value));
  store.mattes.clear();
  running.clear();
  shownFor = null;
  const known = state.service?.models.find((m) => m.name === session.model);
  say(known?.state === "ready" ? "Looking at the picture…" : `Loading ${session.model} and looking at the picture…`, "busy");
  changed();
  try {
    await session.open();
    say("Click on what you want to keep.", "", 3500);
  } catch (error) {
    failed(error);
  }
  if (state.session === session) refreshModels();
}

// Prompts to mattes.

const running = new Map();

async function ask(object) {
  const key = store.key(object);
  const before = running.get(object.number);
  if (Store.empty(object) || store.mattes.has(key) || before?.key === key) return;
  before?.abort.abort();
  const abort = new AbortController();
  running.set(object.number, { key, abort });
  const late = setTimeout(() => say("Working…", "busy"), 400);
  const start = performance.now();
  try {
    const [one] = await candidates({ ...Store.prompt(object), preview: true }, abort.signal);
    store.keep(key, one);
    document.body.dataset.latency = Math.round(performance.now() - start);
    say("");
  } catch (error) {
    if (error.name === "AbortError") return;
    say(error.message, "bad");
  } finally {
    clearTimeout(late);
    if (running.get(object.number)?.abort === abort) running.delete(object.number);
  }
  document.body.dataset.answers = Number(document.body.dataset.answers || 0) + 1;
  list();
  view.refresh();
  suggest();
}

// Mattes of one prompt, each with its score and number.
async function candidates(body, signal) {
  const { session } = state;
  const answer = await (await session.ask("v1/matte", body, signal)).json();
  const rows = answer.objects[0].candidates.map(async ({ alpha, score, candidate }) => ({ ...(await decode(alpha)), score, candidate }));
  const mattes = await Promise.all(rows);
  session.check();
  return mattes;
}

function changed() {
  list();
  view.refresh();
  suggest();
  if (state.session) store.objects.forEach(ask);
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
      const rows = [{ number: 0, matte: store.mattes.get(key) }];
      for (const matte of await candidates({ ...Store.prompt(base), candidates: 3, preview: true })) {
        store.keep(store.key({ ...base, candidate: matte.candidate }), matte);
        rows.push({ number: matte.candidate, matte });
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
      if (error.status !== 429) failed(error);
    }
  }, 450);
}

const choose = (number) => store.edit((s) => (s.current.candidate = number));

function picked() {
  $("alternatives").hidden = false;
  press("#candidates button", (b) => Number(b.dataset.candidate) === store.current.candidate);
}

// Show which of several buttons is the chosen one, to the eye and to screen readers.
function press(query, chosen) {
  for (const button of all(query)) {
    button.classList.toggle("on", chosen(button));
    button.setAttribute("aria-pressed", chosen(button));
  }
}

// The panel.

// What takes long and must not be started twice: ids of its buttons.
const working = new Set();

function list() {
  const focused = all("#objects button").indexOf(document.activeElement);
  $("objects").replaceChildren(...store.objects.map(row));
  const buttons = all("#objects button");
  if (focused >= 0) buttons[Math.min(focused, buttons.length - 1)].focus();
  const ready = store.filled().some((o) => store.matte(o));
  $("download").disabled = !ready || working.has("download");
  $("auto").disabled = !state.session || working.has("auto");
  $("undo").disabled = store.at === 0;
  $("redo").disabled = store.at === store.past.length - 1;
}

function row(object, index) {
  const made = document.createElement("li");
  const pick = document.createElement("button");
  made.className = index === store.active ? "on" : "";
  pick.className = "pick-object";
  pick.setAttribute("aria-pressed", index === store.active);
  const dot = document.createElement("i");
  dot.className = "dot";
  dot.style.background = `rgb(${colourOf(object).join(",")})`;
  const name = document.createElement("span");
  name.textContent = object.label || `Object ${object.number}`;
  const note = document.createElement("small");
  const matte = store.matte(object);
  note.textContent = Store.empty(object) ? "click the picture" : matte ? `${Math.round(100 * matte.score)}%` : "…";
  pick.append(dot, name, note);
  pick.onclick = () => {
    store.active = index;
    changed();
  };
  const drop = document.createElement("button");
  drop.textContent = "✕";
  drop.title = "Remove this object (Delete)";
  drop.setAttribute("aria-label", `Remove ${name.textContent}`);
  drop.onclick = () => store.edit((s) => s.remove(index));
  made.append(pick, drop);
  return made;
}

function show(mode) {
  view.mode = mode;
  press("#views button", (b) => b.dataset.view === mode);
  view.draw();
}

function setBack(back) {
  view.back = back;
  press("#backs button", (b) => (b.dataset.back || "picture") === back);
  document.querySelector(".colour").classList.toggle("on", !document.querySelector("#backs button.on"));
  show("cutout");
}

function tool(name) {
  view.tool = name;
  press("[data-tool]", (b) => b.dataset.tool === name);
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

// Do something long, once at a time; its button is off meanwhile.
async function long(id, text, work) {
  if (working.has(id)) return;
  working.add(id);
  list();
  say(text, "busy");
  try {
    await work();
  } catch (error) {
    failed(error);
  } finally {
    working.delete(id);
    list();
  }
}

// The file is that of the picture and the objects of now, whatever is opened while it is made.
async function file() {
  const { session, name } = state;
  const [output, format, bits] = $("kind").value.split(",");
  const body = { objects: objects(), output, format, bits: Number(bits), refine: $("refine").checked };
  if (output === "composite") {
    if (view.back === "picture") body.background_image = await base64(state.backBlob);
    else body.background = view.back === "checker" ? "white" : view.back;
  }
  const blob = await (await session.post("v1/matte", body)).blob();
  save(blob, `${name}.${output}.${format}`);
  say("Saved.", "", 2000);
}

const download = () => long("download", "Preparing the file at full size…", file);
const objects = () => store.filled().map(Store.prompt);

// Before and after.

async function after(url, signal) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  canvas.getContext("2d").drawImage(image, 0, 0);
  const blob = await canvas.convertToBlob({ type: "image/png" });
  signal.throwIfAborted();
  view.after = canvas;
  $("compare").hidden = false;
  view.draw();
  return blob;
}

function closeAfter() {
  view.after = null;
  $("compare").hidden = true;
  document.querySelector("#page-tab .actions")?.replaceChildren();
  view.draw();
}

// Boxes become objects, unless there is one with that box already.
function take(found) {
  const has = (one) => store.objects.some((o) => String(o.box) === String(one.box));
  const boxes = found.map((one) => ({ box: one.box.map((v) => Math.round(v * 10) / 10), label: one.phrase })).filter((one) => !has(one));
  const kept = boxes.slice(0, MOST.objects - store.filled().length);
  if (kept.length < boxes.length) say(`Took ${kept.length} of ${boxes.length}: there are at most ${MOST.objects} objects.`, "bad", 5000);
  store.edit((s) => kept.forEach((one) => s.add(one)));
}

async function find() {
  const { session } = state;
  const answer = await (await session.ask("v1/auto", {})).json();
  const tiles = await Promise.all(answer.objects.map(tile));
  session.check();
  $("found").replaceChildren(...tiles);
  say(tiles.length ? `Found ${tiles.length}.` : "Nothing was found.", "", 3000);
}

async function tile(one) {
  const made = document.createElement("button");
  const canvas = document.createElement("canvas");
  thumbnail(await decode(one.alpha), canvas);
  made.append(canvas, `${Math.round(100 * one.score)}%`);
  made.onclick = () => {
    made.classList.add("on");
    take([{ box: one.box, phrase: null }]);
  };
  return made;
}

const everything = () => long("auto", "Finding everything; this takes a while on a CPU…", find);

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

let shown = null;
let leaving = new AbortController(); // what a tab asks for is given up when the tab is left

function turn(page) {
  if (page === shown) return;
  shown = page;
  leaving.abort();
  leaving = new AbortController();
  all("#tabs button").forEach((b) => b.setAttribute("aria-selected", b.dataset.tab === page.name));
  $("page-cut").hidden = page.name !== "cut";
  $("page-auto").hidden = page.name !== "auto";
  $("page-tab").hidden = !page.endpoint;
  closeAfter();
  if (page.endpoint) drawTab($("page-tab"), page, app(leaving.signal));
}

// What a tab may do with the picture, until `signal` says that it was left.
function app(signal) {
  return {
    say, failed, objects, take, signal,
    ready: () => Boolean(state.session),
    ask: async (path, body) => (await state.session.ask(path, body, signal)).json(),
    after: (url) => after(url, AbortSignal.any([signal, state.session.ended.signal])),
    back: closeAfter,
    save: (blob, kind) => save(blob, `${state.name}.${kind}.png`),
    open: (blob) => open(blob, `${state.name}.png`),
  };
}

async function refreshModels() {
  try {
    state.service = await info();
  } catch {
    return; // what is shown stays; whatever is asked next says that the service is not there
  }
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

press("#views button", (b) => b.dataset.view === view.mode);
press("#backs button", (b) => b.dataset.back === view.back);
tool("click");

const pick = () => $("file").click();
$("open").onclick = $("open2").onclick = pick;
$("file").onchange = () => $("file").files[0] && open($("file").files[0], $("file").files[0].name) && ($("file").value = "");
all("[data-sample]").forEach((button) => {
  const name = button.dataset.sample;
  button.onclick = () => fetched(`samples/${name}`).then((blob) => open(blob, name)).catch(failed);
});
all("[data-tool]").forEach((b) => (b.onclick = () => tool(b.dataset.tool)));
all("[data-view]").forEach((b) => (b.onclick = () => show(b.dataset.view)));
all("[data-back]").forEach((b) => (b.onclick = () => setBack(b.dataset.back)));
$("colour").oninput = () => setBack($("colour").value);
$("backpic").onclick = () => {
  $("backfile").value = ""; // or the same file again would be no change
  $("backfile").click();
};
$("backfile").onchange = async () => {
  if (!$("backfile").files.length) return;
  try {
    const { blob, bitmap } = await picture($("backfile").files[0]);
    state.backBlob = blob;
    view.backBitmap = bitmap;
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
$("model").onchange = () => state.session && begin(state.session.blob);
$("api").onclick = (event) => {
  if (!hasToken()) return; // the browser opens the address, without a token
  event.preventDefault();
  fetched("openapi.json").then((blob) => save(blob, "openapi.json")).catch(failed);
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
const TYPING = "textarea, input:is([type=text], [type=number])";
const PRESSED = "a, button, input, select"; // Space is theirs
window.addEventListener("keydown", (event) => {
  if (event.target.matches(TYPING) || $("keys").open) return;
  const command = event.ctrlKey || event.metaKey;
  const digit = /^Digit([0-3])$/.exec(event.code);
  if (command && event.key.toLowerCase() === "z") store.step(event.shiftKey ? 1 : -1);
  else if (command && event.key.toLowerCase() === "y") store.step(1);
  else if (command) return;
  else if (event.key === " " && event.target.matches(PRESSED)) return;
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
window.addEventListener("blur", () => (view.space = false));

start();
