// An answer that is being received: chunks in, a message of the page grows. Pure; the time is an argument,
// in milliseconds.

const RATE_TOKENS_MIN = 8;
const RATE_MS_MIN = 100;

export function emptyAnswer() {
  return {
    role: 'assistant',
    content: '',
    reasoning: '',
    reasoningSeconds: null,
    calls: [],
    finish: null,
    usage: null,
    firstTokenSeconds: null,
    rate: null,
    stopped: false,
    problem: null,
  };
}

export class Receiving {
  constructor(message, nowMs) {
    Object.assign(this, { message, begunMs: nowMs, firstMs: null, firstTokens: 0, thoughtFromMs: null, thoughtOver: false });
  }

  chunk(chunk, nowMs) {
    const choice = chunk.choices?.[0];
    if (chunk.usage) this.usage(chunk.usage, nowMs);
    if (!choice) return;
    this.delta(choice.delta ?? {}, nowMs);
    if (choice.finish_reason) this.message.finish = choice.finish_reason;
  }

  delta({ reasoning, reasoning_content, content, tool_calls }, nowMs) {
    const thought = reasoning ?? reasoning_content;
    if (thought) this.think(thought, nowMs);
    if (content || tool_calls) this.endThought(nowMs);
    if (content) this.message.content += content;
    for (const call of tool_calls ?? []) this.call(call);
  }

  think(text, nowMs) {
    this.thoughtFromMs ??= nowMs;
    this.message.reasoning += text;
    this.message.reasoningSeconds = (nowMs - this.thoughtFromMs) / 1000;
  }

  /** Time passes while the model thinks and sends nothing. */
  tick(nowMs) {
    if (this.thoughtFromMs !== null && !this.thoughtOver) {
      this.message.reasoningSeconds = (nowMs - this.thoughtFromMs) / 1000;
    }
  }

  endThought(nowMs) {
    this.tick(nowMs);
    this.thoughtOver = true;
  }

  call({ index, id, function: part }) {
    this.message.calls[index] ??= { id: id ?? `call_${index}`, name: '', arguments: '' };
    const call = this.message.calls[index];
    call.name += part?.name ?? '';
    call.arguments += part?.arguments ?? '';
  }

  /** The rate leaves out the first tokens, which waited for the prompt to be read. */
  usage(usage, nowMs) {
    const message = this.message;
    message.usage = {
      prompt: usage.prompt_tokens,
      cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
      completion: usage.completion_tokens,
      reasoning: usage.completion_tokens_details?.reasoning_tokens ?? 0,
    };
    if (usage.completion_tokens === 0) return;
    if (this.firstMs === null) {
      this.firstMs = nowMs;
      this.firstTokens = usage.completion_tokens;
      message.firstTokenSeconds = (nowMs - this.begunMs) / 1000;
    } else if (usage.completion_tokens > (this.lastTokens ?? this.firstTokens)) {
      this.lastTokens = usage.completion_tokens;
      this.rate(usage.completion_tokens - this.firstTokens, nowMs - this.firstMs);
    }
  }

  /** Of a few tokens, which may have come in one piece, there is none to tell. */
  rate(tokens, ms) {
    if (tokens >= RATE_TOKENS_MIN && ms >= RATE_MS_MIN) this.message.rate = (tokens * 1000) / ms;
  }
}
