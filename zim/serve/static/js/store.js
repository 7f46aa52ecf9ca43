// Objects and their prompts, with undo and redo. Mattes are kept by prompt, so undo is instant.
export const COLOURS = [
  [91, 91, 240], [235, 94, 85], [28, 168, 98], [240, 160, 30], [190, 80, 220], [20, 160, 190], [230, 90, 150], [120, 130, 30],
];

const blank = (number) => ({ number, points: [], box: null, scribble: [], candidate: 0, label: null });

export class Store {
  constructor(changed) {
    this.changed = changed;
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
    change(this);
    this.past.length = this.at + 1;
    this.past.push(this.snapshot());
    if (this.past.length > 300) this.past.shift();
    this.at = this.past.length - 1;
    this.changed();
  }

  step(by) {
    const to = this.at + by;
    if (to < 0 || to >= this.past.length) return;
    this.at = to;
    [this.objects, this.active] = JSON.parse(this.past[to]);
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

  keep(key, matte) {
    this.mattes.set(key, matte);
    while (this.mattes.size > 48) this.mattes.delete(this.mattes.keys().next().value);
  }

  filled() {
    return this.objects.filter((o) => !Store.empty(o));
  }
}

export const colourOf = (object) => COLOURS[(object.number - 1) % COLOURS.length];
