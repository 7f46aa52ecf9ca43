// Requests to the service. A token given as #token=... stays in this tab and leaves the address.
const found = /#token=([^&]+)/.exec(location.hash);
if (found) {
  sessionStorage.setItem("zim-token", plain(found[1]));
  history.replaceState(null, "", location.pathname);
}

export const hasToken = () => Boolean(sessionStorage.getItem("zim-token"));

// A token may have been copied with its percent signs as they are.
function plain(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function send(path, options = {}) {
  const token = sessionStorage.getItem("zim-token");
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached. Is zim serve still running?");
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  const failure = new Error(problem.detail || `The service answered ${answer.status}.`);
  failure.status = answer.status;
  throw failure;
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// 429 says "busy": wait and ask again, a few times.
async function patient(path, options) {
  for (let turn = 0; ; turn += 1) {
    try {
      return await send(path, options);
    } catch (error) {
      if (error.status !== 429 || turn >= 5) throw error;
      await pause(400 * (turn + 1));
    }
  }
}

export const info = async () => (await send("v1/models")).json();
export const fetched = async (path) => (await send(path)).blob();

export async function post(path, body, signal) {
  const options = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  };
  return patient(path, options);
}

export async function embed(blob, model, signal) {
  const form = new FormData();
  form.append("image", blob, "picture");
  form.append("model", model);
  return (await patient("v1/embeddings", { method: "POST", body: form, signal })).json();
}

export const base64 = (blob) =>
  new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(blob);
  });
