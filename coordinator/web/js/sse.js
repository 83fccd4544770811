// Server-sent events from the body of an answer: bytes in, the data of each event out. Not an EventSource,
// which can neither post nor send a key. Names of events, ids and retries are passed over.

/** @param {ReadableStream<Uint8Array>} body */
export async function* events(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  const lines = new Lines();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* lines.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    // Whoever stops reading ends the request too.
    reader.cancel().catch(() => {});
  }
}

export class Lines {
  constructor() {
    this.rest = '';
    this.data = [];
  }

  *push(text) {
    const lines = (this.rest + text).split('\n');
    this.rest = lines.pop();
    for (const line of lines) {
      const trimmed = line.endsWith('\r') ? line.slice(0, -1) : line;
      if (trimmed.startsWith('data:')) this.data.push(trimmed.slice(5).replace(/^ /, ''));
      else if (trimmed === '' && this.data.length > 0) yield this.data.splice(0).join('\n');
    }
  }
}
