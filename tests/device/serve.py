#!/usr/bin/env python3
"""Serves a model on cards, asks it as clients do, and says how fast tokens came and what memory it took.

One table line on stdout, everything as JSON in --json. Needs nothing but Python.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.parse


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flotilla", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", help="synthetic:SEED")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--streams", default="1,8")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--kv-tokens", type=int, default=16384)
    parser.add_argument("--read-rate", type=float, help="bytes a second, for the share of the byte bound")
    parser.add_argument("--ask", help="a question to a trained model")
    parser.add_argument("--expect", help="what its answer must hold")
    parser.add_argument("--ready-seconds", type=float, default=240)
    parser.add_argument("--json")
    return parser.parse_args()


def memory_used(ordinal):
    """MiB that the card has given out, by nvidia-smi; None without it."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", ordinal]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return int(found.stdout.split()[0])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def planned(args):
    """What `flotilla plan` says of one rank, if it knows the model."""
    model = args.model
    if os.path.isdir(model):
        model = os.path.join(model, "config.json")
    command = [args.flotilla, "plan", "--model", model, "--ranks", "1", "--backend", "cuda", "--json"]
    command += ["--kv-tokens", str(args.kv_tokens)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if found.returncode != 0:
        return None
    plan = json.loads(found.stdout)
    parts = plan["bytes"][0]
    weights = sum(parts[part] for part in ("attention", "experts", "embedding", "unembedding", "replicated"))
    blocks, block_tokens = plan["demand"]["kv_blocks"], 16
    cache = parts["kv_full_per_token"] * blocks["full"] + parts["kv_window_per_token"] * blocks["window"]
    total = weights + cache * block_tokens + plan["activations"][0]
    return {"parts": parts, "weights": weights, "total": total}


def token_bytes(args, plan):
    """Least that a step of one row reads: everything dense, and the chosen experts."""
    config = os.path.join(args.model, "config.json")
    if os.path.exists(config):
        with open(config) as file:
            config = json.load(file)
        experts = config["num_local_experts"]
        chosen = config.get("num_experts_per_tok") or config["experts_per_token"]
    else:
        experts, chosen = (32 if "20b" in args.model else 128), 4
    parts = plan["parts"]
    return parts["attention"] + parts["unembedding"] + parts["replicated"] + parts["experts"] * chosen / experts


class Server:
    def __init__(self, args):
        command = [args.flotilla, "up", "--model", args.model, "--device", args.device]
        command += ["--listen", "127.0.0.1:0", "--current-date", "2026-11-23", "--kv-tokens", str(args.kv_tokens)]
        if args.weights:
            command += ["--weights", args.weights]
        self.start = time.monotonic()
        self.child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, start_new_session=True
        )
        self.url = None
        self.ready = threading.Event()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.child.stdout:
            sys.stderr.write(line)
            found = re.search(r" is served on (http://\S+)", line)
            if found:
                self.url = urllib.parse.urlparse(found.group(1))
                self.ready.set()
        self.ready.set()

    def wait(self, seconds):
        self.ready.wait(seconds)
        if self.url is None:
            raise RuntimeError(f"not ready after {time.monotonic() - self.start:.0f} s")
        return time.monotonic() - self.start

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.child.pid, number)
                self.child.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def post(url, path, body):
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=300)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status} {response.read(500)!r}")
    return response


def stream(url, tokens, seed, into):
    """Asks for `tokens` more tokens; notes when the first and the last came, and how many there were."""
    words = random.Random(seed).choices(["one", "two", "ship", "sea", "north", "sail", "wind", "port"], k=48)
    body = {"prompt": " ".join(words), "max_tokens": tokens, "temperature": 1, "seed": seed}
    body.update(stream=True, stream_options={"include_usage": True})
    start, first, last, count = time.monotonic(), None, None, None
    try:
        for line in post(url, "/v1/completions", body):
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("choices"):
                last = time.monotonic()
                first = first or last
            if event.get("usage"):
                count = event["usage"]["completion_tokens"]
        into.append({"start": start, "first": first, "last": last, "tokens": count})
    except (OSError, RuntimeError, ValueError) as error:
        into.append({"error": str(error)})


def load(url, streams, tokens):
    found = []
    threads = [threading.Thread(target=stream, args=(url, tokens, seed, found)) for seed in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [each["error"] for each in found if "error" in each]
    if errors:
        raise RuntimeError(errors[0])
    # From the first token of any to the last of all; each stream's first token is not in that time's work.
    seconds = max(each["last"] for each in found) - min(each["first"] for each in found)
    count = sum(each["tokens"] - 1 for each in found)
    waits = sorted(each["first"] - each["start"] for each in found)
    return {
        "streams": streams,
        "tokens": count,
        "tokens_per_second": count / max(seconds, 1e-9),
        "first_token_ms": 1e3 * waits[len(waits) // 2],
    }


def main():
    args = arguments()
    ordinal = args.device.partition(":")[2] or "0"
    before = memory_used(ordinal)
    report = {"model": args.model, "device": args.device, "memory_before_mib": before}
    server = Server(args)
    try:
        report["ready_seconds"] = server.wait(args.ready_seconds)
        words = [f"ready {report['ready_seconds']:.1f} s"]
        if args.ask:
            body = {"messages": [{"role": "user", "content": args.ask}], "temperature": 0}
            answer = json.load(post(server.url, "/v1/chat/completions", body))
            text = answer["choices"][0]["message"]["content"]
            report["answer"] = text
            if args.expect not in text:
                raise RuntimeError(f"the answer is {text!r}")
            words.append(f"answers {text.strip()!r}")
        plan = planned(args)
        report["planned"] = plan
        for streams in (int(count) for count in args.streams.split(",") if count):
            load(server.url, streams, min(args.tokens, 16))
            found = load(server.url, streams, args.tokens)
            words.append(f"{streams} streams: {found['tokens_per_second']:.1f} tokens/s")
            if streams == 1 and plan and args.read_rate:
                bound = token_bytes(args, plan) / args.read_rate
                took = 1 / found["tokens_per_second"]
                found["byte_bound_ms"], found["token_ms"] = 1e3 * bound, 1e3 * took
                words.append(f"{bound / took:.2f} of the byte bound, {1e3 * (took - bound):.2f} ms outside it")
            report.setdefault("loads", []).append(found)
        after = memory_used(ordinal)
        if before is not None and after is not None and plan:
            report["memory_used_bytes"] = (after - before) << 20
            used = report["memory_used_bytes"]
            words.append(f"memory planned {plan['total'] / 1e9:.2f} GB, used {used / 1e9:.2f} GB with the context")
        print(", ".join(words))
        return 0
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        report["error"] = str(error)
        print(f"FAILED: {error}")
        return 1
    finally:
        server.stop()
        if args.json:
            with open(args.json, "w") as file:
                json.dump(report, file, indent=1)


sys.exit(main())
