// Picture files, so that the service sees what the browser shows.
const EXIF = 8; // a flag in the header of an extended WebP file

// Decode a file: { blob to send, bitmap to show }. Browsers ignore how a WebP file says it is turned, the service
// does not; such a file is sent as the pixels that are shown.
export async function picture(blob) {
  const bitmap = await createImageBitmap(blob);
  return { blob: (await mayTurn(blob)) ? await asPng(bitmap) : blob, bitmap };
}

async function mayTurn(blob) {
  const head = new Uint8Array(await blob.slice(0, 21).arrayBuffer());
  const text = String.fromCharCode(...head);
  return text.startsWith("RIFF") && text.slice(8, 16) === "WEBPVP8X" && (head[20] & EXIF) !== 0;
}

function asPng(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}
