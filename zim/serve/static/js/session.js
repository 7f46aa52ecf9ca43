// A picture as the service knows it, under one model. Another picture or model is another session.
import { embed, post } from "./api.js";

export class Session {
  constructor(blob, model) {
    Object.assign(this, { blob, model, opening: null });
    this.ended = new AbortController();
  }

  // Nothing asked through `ask` is answered afterwards: it fails with an AbortError.
  end() {
    this.ended.abort();
  }

  // Fail with an AbortError after the end.
  check() {
    this.ended.signal.throwIfAborted();
  }

  // What the service says about the picture, its id above all. A failure is not kept: the next one tries again.
  open() {
    if (!this.opening) {
      const opening = embed(this.blob, this.model, this.ended.signal);
      this.opening = opening;
      opening.catch(() => this.forget(opening));
    }
    return this.opening;
  }

  forget(opening) {
    if (this.opening === opening) this.opening = null;
  }

  // Ask about the picture. The service forgets embeddings to make room; then it is sent again, once for all who ask.
  async post(path, body, signal) {
    const opening = this.open();
    try {
      return await post(path, { ...body, embedding: (await opening).id }, signal);
    } catch (error) {
      if (error.status !== 404) throw error;
      this.forget(opening);
      return post(path, { ...body, embedding: (await this.open()).id }, signal);
    }
  }

  // As `post`, while the picture is shown.
  ask(path, body, signal) {
    return this.post(path, body, signal ? AbortSignal.any([signal, this.ended.signal]) : this.ended.signal);
  }
}
