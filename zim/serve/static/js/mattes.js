// Mattes as arrays of bytes: from the service's PNG, merged, as canvases to draw.
export async function decode(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  const values = new Uint8ClampedArray(canvas.width * canvas.height);
  for (let i = 0; i < values.length; i += 1) values[i] = data[4 * i];
  return { width: canvas.width, height: canvas.height, values };
}

// Several objects together: the largest alpha at every pixel, as in the service's files.
export function merge(mattes) {
  if (!mattes.length) return null;
  const { width, height } = mattes[0];
  const values = new Uint8ClampedArray(width * height);
  for (const matte of mattes) {
    if (matte.values.length !== values.length) continue;
    for (let i = 0; i < values.length; i += 1) if (matte.values[i] > values[i]) values[i] = matte.values[i];
  }
  return { width, height, values };
}

// A canvas of one colour whose transparency is the matte (or its opposite).
export function paint(matte, [r, g, b], inverse = false) {
  const canvas = new OffscreenCanvas(matte.width, matte.height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(matte.width, matte.height);
  for (let i = 0, j = 0; i < matte.values.length; i += 1, j += 4) {
    image.data[j] = r;
    image.data[j + 1] = g;
    image.data[j + 2] = b;
    image.data[j + 3] = inverse ? 255 - matte.values[i] : matte.values[i];
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

export function thumbnail(matte, canvas) {
  canvas.width = canvas.height = 96;
  const scale = Math.min(96 / matte.width, 96 / matte.height);
  const [w, h] = [matte.width * scale, matte.height * scale];
  const context = canvas.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, 96, 96);
  context.drawImage(paint(matte, [255, 255, 255]), (96 - w) / 2, (96 - h) / 2, w, h);
}
