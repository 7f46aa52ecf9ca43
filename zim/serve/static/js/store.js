// Objects and their prompts, with undo and redo. Mattes are kept by prompt, so undo is instant.
export const COLOURS = [
  [91, 91, 240], [235, 94, 85], [28, 168, 98], [240, 160, 30], [190, 80, 220], [20, 160, 190], [230, 90, 150], [120, 130, 30],
];
// The service refuses more in one request.
export const MOST = { objects: 32, points: 200, strokes: 100, stroke: 2000 };
const KEPT = 48; // mattes, besides those of the objects there are

const blank = (number) => ({ number, points: [], box: null, scribble: [], candidate: 0, label: null });

export class Store {
  // `refused` is called with a sentence when an edit would go beyond MOST.
  constructor(changed, refused) {
    Object.assign(this, { changed, refused });
    this.mattes = new Map();
    this.reset();
  }

  reset() {
    this.objects = [blank(1)];
    this.active = 0;
    this.mattes.clear();
    this.past = [this.snapshot()];
    this.at = 0;
  }

  snapshot() {
    return JSON.stringify([this.objects, this.active]);
  }

  get current() {
    return this.objects[this.active];
  }

  // Apply a change and remember the state after it.
  edit(change) {
    const before = this.snapshot();
    change(this);
    const excess = this.excess();
    if (excess) {
      this.restore(before);
      return this.refused(excess);
    }
    if (this.snapshot() === before) return;
    this.past.length = this.at + 1;
    this.past.push(this.snapshot());
    if (this.past.length > 300) this.past.shift();
    this.at = this.past.length - 1;
    this.changed();
  }

  excess() {
    const over = (many, most) => this.objects.some((o) => o[many].length > most);
    if (this.objects.length > MOST.objects) return `There are ${MOST.objects} objects, which is the most. Remove one first.`;
    if (over("points", MOST.points)) return `This object has ${MOST.points} clicks, which is the most. Undo some, or draw a box.`;
    if (over("scribble", MOST.strokes)) return `This object has ${MOST.strokes} strokes, which is the most. Undo some.`;
    return "";
  }

  restore(snapshot) {
    [this.objects, this.active] = JSON.parse(snapshot);
  }

  step(by) {
    const to = this.at + by;
    if (to < 0 || to >= this.past.length) return;
    this.at = to;
    this.restore(this.past[to]);
    this.changed();
  }

  add(fields = {}) {
    if (Store.empty(this.current)) {
      Object.assign(this.current, fields);
      return;
    }
    const number = 1 + Math.max(0, ...this.objects.map((o) => o.number));
    this.objects.push({ ...blank(number), ...fields });
    this.active = this.objects.length - 1;
  }

  remove(index) {
    this.objects.splice(index, 1);
    if (!this.objects.length) this.objects.push(blank(1));
    if (index < this.active) this.active -= 1;
    this.active = Math.min(this.active, this.objects.length - 1);
  }

  static empty(object) {
    return !object.points.length && !object.box && !object.scribble.length;
  }

  static prompt(object) {
    const prompt = { candidate: object.candidate };
    if (object.points.length) prompt.points = object.points;
    if (object.box) prompt.box = object.box;
    if (object.scribble.length) prompt.scribble = object.scribble;
    return prompt;
  }

  key(object) {
    return JSON.stringify(Store.prompt(object));
  }

  matte(object) {
    return this.mattes.get(this.key(object));
  }

  // Keep a matte; the oldest go, but none that is shown.
  keep(key, matte) {
    this.mattes.set(key, matte);
    const shown = new Set(this.objects.map((o) => this.key(o)));
    const spare = [...this.mattes.keys()].filter((k) => !shown.has(k));
    spare.slice(0, Math.max(0, spare.length - KEPT)).forEach((k) => this.mattes.delete(k));
  }

  filled() {
    return this.objects.filter((o) => !Store.empty(o));
  }
}

export const colourOf = (object) => COLOURS[(object.number - 1) % COLOURS.length];
