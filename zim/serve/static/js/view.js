// The canvas: what is drawn, zoom and pan, and what pointers mean.
import { merge, paint } from "./mattes.js";
import { MOST, colourOf } from "./store.js";

const CLICK = 5; // pixels a pointer may move and still be a click
const BESIDE = 8; // most clicks that a stroke of the brush beside the object becomes

export class View {
  constructor(canvas, store, on) {
    Object.assign(this, { canvas, store, on, bitmap: null, scale: 1, x: 0, y: 0, mode: "overlay" });
    Object.assign(this, { back: "checker", backBitmap: null, tool: "click", negative: false, after: null });
    this.split = 0.5;
    this.pointers = new Map();
    this.draft = null;
    this.layers = null;
    this.fitted = true; // nobody has zoomed or moved the picture
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", (e) => this.down(e));
    canvas.addEventListener("pointermove", (e) => this.move(e));
    canvas.addEventListener("pointerup", (e) => this.up(e));
    canvas.addEventListener("pointercancel", (e) => this.cancel(e));
    canvas.addEventListener("contextmenu", (e) => e.preventDefault());
    canvas.addEventListener("wheel", (e) => this.wheel(e), { passive: false });
  }

  open(bitmap) {
    this.bitmap = bitmap;
    this.after = null;
    this.layers = null;
    this.fit();
  }

  // Take the size of the window; what is in the middle stays there unless the whole picture is shown.
  resize() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    const ratio = window.devicePixelRatio || 1;
    this.x += (w - this.canvas.width / ratio) / 2;
    this.y += (h - this.canvas.height / ratio) / 2;
    this.canvas.width = Math.round(w * ratio);
    this.canvas.height = Math.round(h * ratio);
    if (this.fitted) this.fit();
    else this.draw();
  }

  fit() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    this.fitted = true;
    if (this.bitmap) {
      const narrow = w < 640;
      const [left, edge] = narrow ? [12, 12] : [76, 28];
      const bottom = narrow ? 66 : edge;
      const free = [w - left - edge, h - edge - bottom];
      this.scale = Math.min(free[0] / this.bitmap.width, free[1] / this.bitmap.height, 4);
      this.x = left + (free[0] - this.bitmap.width * this.scale) / 2;
      this.y = edge + (free[1] - this.bitmap.height * this.scale) / 2;
    }
    this.draw();
  }

  zoom(factor, cx = this.canvas.clientWidth / 2, cy = this.canvas.clientHeight / 2) {
    const next = Math.min(40, Math.max(0.05, this.scale * factor));
    this.x = cx - ((cx - this.x) * next) / this.scale;
    this.y = cy - ((cy - this.y) * next) / this.scale;
    this.scale = next;
    this.fitted = false;
    this.draw();
  }

  // Layers depend on mattes alone; zoom and pan only draw them again.
  refresh() {
    this.layers = null;
    this.draw();
  }

  build() {
    const shown = this.store.filled().filter((o) => this.store.matte(o));
    const all = merge(shown.map((o) => this.store.matte(o)));
    this.layers = { tints: shown.map((o) => paint(this.store.matte(o), colourOf(o))), all: null };
    if (!all) return;
    this.layers.all = paint(all, [255, 255, 255]);
    this.layers.scrim = paint(all, [8, 10, 20], true);
    const cut = new OffscreenCanvas(this.bitmap.width, this.bitmap.height);
    const context = cut.getContext("2d");
    context.drawImage(this.bitmap, 0, 0);
    context.globalCompositeOperation = "destination-in";
    context.drawImage(this.layers.all, 0, 0, cut.width, cut.height);
    this.layers.cut = cut;
  }

  draw() {
    if (!this.bitmap) return;
    if (!this.layers) this.build();
    const context = this.canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const [w, h] = [this.bitmap.width * this.scale, this.bitmap.height * this.scale];
    context.imageSmoothingEnabled = this.scale < 4;
    context.imageSmoothingQuality = "high";
    const put = (picture) => context.drawImage(picture, this.x, this.y, w, h);
    if (this.after) {
      this.part(context, this.x, w * this.split, h, () => put(this.bitmap));
      this.part(context, this.x + w * this.split, w * (1 - this.split), h, () => put(this.after));
      context.fillStyle = "#fff";
      context.fillRect(this.x + w * this.split - 1, this.y, 2, h);
    } else if (this.mode === "overlay" || !this.layers.all) {
      put(this.bitmap);
      if (this.layers.all) {
        context.globalAlpha = 0.5;
        put(this.layers.scrim);
        context.globalAlpha = 0.38;
        this.layers.tints.forEach(put);
        context.globalAlpha = 1;
      }
    } else if (this.mode === "alpha") {
      context.fillStyle = "#000";
      context.fillRect(this.x, this.y, w, h);
      put(this.layers.all);
    } else {
      this.background(context, w, h);
      put(this.layers.cut);
    }
    if (!this.after) this.marks(context);
    this.on.zoomed(this.scale);
  }

  // Draw between two sides only: either picture may be transparent.
  part(context, left, w, h, draw) {
    context.save();
    context.beginPath();
    context.rect(left, this.y, w, h);
    context.clip();
    draw();
    context.restore();
  }

  background(context, w, h) {
    context.save();
    context.beginPath();
    context.rect(this.x, this.y, w, h);
    context.clip();
    if (this.back === "picture" && this.backBitmap) {
      const { width, height } = this.backBitmap;
      const scale = Math.max(w / width, h / height);
      const [bw, bh] = [width * scale, height * scale];
      context.drawImage(this.backBitmap, this.x + (w - bw) / 2, this.y + (h - bh) / 2, bw, bh);
    } else if (this.back === "checker") {
      context.fillStyle = "#fff";
      context.fillRect(this.x, this.y, w, h);
      context.fillStyle = "#d3d7e0";
      for (let j = 0; j * 12 < h; j += 1)
        for (let i = j % 2; i * 12 < w; i += 2) context.fillRect(this.x + i * 12, this.y + j * 12, 12, 12);
    } else {
      context.fillStyle = this.back;
      context.fillRect(this.x, this.y, w, h);
    }
    context.restore();
  }

  marks(context) {
    const object = this.store.current;
    const at = ([x, y]) => [this.x + (x + 0.5) * this.scale, this.y + (y + 0.5) * this.scale];
    const colour = `rgb(${colourOf(object).join(",")})`;
    const box = this.draft?.box || object.box;
    if (box) {
      const [x0, y0] = [this.x + box[0] * this.scale, this.y + box[1] * this.scale];
      const [bw, bh] = [(box[2] - box[0]) * this.scale, (box[3] - box[1]) * this.scale];
      for (const [style, dash] of [["#fff", []], [colour, [7, 5]]]) {
        context.strokeStyle = style;
        context.lineWidth = 2;
        context.setLineDash(dash);
        context.strokeRect(x0, y0, bw, bh);
      }
      context.setLineDash([]);
    }
    this.strokes(context, object.scribble, colour, at);
    const { stroke, negative } = this.draft || {};
    if (stroke) this.strokes(context, [stroke], negative ? "#e0404e" : colour, at);
    for (const [x, y, label] of object.points) {
      const [px, py] = at([x, y]);
      context.beginPath();
      context.arc(px, py, 7, 0, 2 * Math.PI);
      context.fillStyle = label ? "#1fae5e" : "#e0404e";
      context.fill();
      context.lineWidth = 2;
      context.strokeStyle = "#fff";
      context.stroke();
      context.beginPath();
      context.moveTo(px - 3, py);
      context.lineTo(px + 3, py);
      if (label) {
        context.moveTo(px, py - 3);
        context.lineTo(px, py + 3);
      }
      context.stroke();
    }
  }

  strokes(context, strokes, colour, at) {
    context.lineCap = context.lineJoin = "round";
    for (const [style, width] of [["rgba(255,255,255,.9)", 7], [colour, 4]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      for (const stroke of strokes) {
        context.beginPath();
        stroke.forEach((p, i) => context[i ? "lineTo" : "moveTo"](...at(p)));
        context.stroke();
      }
    }
  }

  // Picture coordinates of an event: pixel centres at integers, as the service counts.
  where(event) {
    const rect = this.canvas.getBoundingClientRect();
    const x = (event.clientX - rect.left - this.x) / this.scale;
    const y = (event.clientY - rect.top - this.y) / this.scale;
    return [x, y];
  }

  inside([x, y]) {
    return x >= 0 && y >= 0 && x < this.bitmap.width && y < this.bitmap.height;
  }

  pixel([x, y]) {
    const clamp = (v, most) => Math.min(most - 1, Math.max(0, Math.floor(v)));
    return [clamp(x, this.bitmap.width), clamp(y, this.bitmap.height)];
  }

  down(event) {
    if (!this.bitmap) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pointers.size === 2) {
      this.draft = null;
      this.pinch = this.spread();
      return;
    }
    const pan = this.tool === "pan" || this.space || event.button === 1;
    const start = this.where(event);
    const negative = event.button === 2 || event.altKey || this.negative;
    this.draft = { pan, start, negative, screen: [event.clientX, event.clientY], moved: false };
    if (this.tool === "brush" && !pan) this.draft.stroke = [this.pixel(start)];
  }

  spread() {
    const [a, b] = [...this.pointers.values()];
    return { d: Math.hypot(a[0] - b[0], a[1] - b[1]), cx: (a[0] + b[0]) / 2, cy: (a[1] + b[1]) / 2 };
  }

  move(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (this.pinch && this.pointers.size === 2) {
      const now = this.spread();
      const rect = this.canvas.getBoundingClientRect();
      this.x += now.cx - this.pinch.cx;
      this.y += now.cy - this.pinch.cy;
      this.zoom(now.d / this.pinch.d, now.cx - rect.left, now.cy - rect.top);
      this.pinch = now;
      return;
    }
    const draft = this.draft;
    if (!draft) return;
    const far = Math.hypot(event.clientX - draft.screen[0], event.clientY - draft.screen[1]) > CLICK;
    draft.moved ||= far;
    if (draft.pan) {
      this.x += event.clientX - last[0];
      this.y += event.clientY - last[1];
      this.fitted = false;
    } else if (draft.stroke) {
      const point = this.pixel(this.where(event));
      const end = draft.stroke[draft.stroke.length - 1];
      if (point[0] !== end[0] || point[1] !== end[1]) draft.stroke.push(point);
      if (draft.stroke.length > MOST.stroke) draft.stroke = draft.stroke.filter((_, i) => i % 2 === 0);
    } else if (draft.moved && this.tool === "click") {
      const [a, b] = [draft.start, this.where(event)];
      const clamp = (v, most) => Math.min(most, Math.max(0, v));
      const [w, h] = [this.bitmap.width, this.bitmap.height];
      draft.box = [
        clamp(Math.min(a[0], b[0]), w), clamp(Math.min(a[1], b[1]), h),
        clamp(Math.max(a[0], b[0]), w), clamp(Math.max(a[1], b[1]), h),
      ].map((v) => Math.round(v * 10) / 10);
    }
    this.draw();
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.pinch) {
      if (!this.pointers.size) this.pinch = null;
      this.draft = null;
      return;
    }
    const draft = this.draft;
    this.draft = null;
    if (!draft || draft.pan) return;
    if (this.after) {
      if (!draft.moved) this.on.back();
      return;
    }
    if (draft.box) {
      const [x0, y0, x1, y1] = draft.box;
      if (x1 - x0 >= 2 && y1 - y0 >= 2) this.on.box(draft.box);
    } else if (draft.stroke && draft.negative) this.on.clicks(along(draft.stroke, BESIDE).map((p) => [...p, 0]));
    else if (draft.stroke) this.on.stroke(draft.stroke);
    else if (!draft.moved && this.inside(draft.start)) this.on.clicks([[...this.pixel(draft.start), draft.negative ? 0 : 1]]);
    this.draw();
  }

  cancel(event) {
    this.pointers.delete(event.pointerId);
    this.draft = this.pinch = null;
    this.draw();
  }

  wheel(event) {
    if (!this.bitmap) return;
    event.preventDefault();
    const rect = this.canvas.getBoundingClientRect();
    this.zoom(Math.exp(-event.deltaY * 0.0015), event.clientX - rect.left, event.clientY - rect.top);
  }
}

// At most `most` points of a stroke, evenly along its length, both ends among them.
function along(stroke, most) {
  const lengths = [0];
  for (let i = 1; i < stroke.length; i += 1)
    lengths.push(lengths[i - 1] + Math.hypot(stroke[i][0] - stroke[i - 1][0], stroke[i][1] - stroke[i - 1][1]));
  const step = lengths[lengths.length - 1] / (most - 1);
  if (stroke.length <= most) return stroke;
  return Array.from({ length: most }, (_, i) => stroke[Math.max(0, lengths.findLastIndex((l) => l <= i * step + 1e-6))]);
}
