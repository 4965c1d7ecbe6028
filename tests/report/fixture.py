"""A run that never ran: files as the stages write them, with believable numbers, up to any stage.

run = build(tmp_path, until="rl")
"""

import json
import math
import random
from pathlib import Path

from pyengine.files import write_json
from pyengine.text import Tokenizer
from pyengine.train.config import Config
from pyengine.train.rlhf import turning_point
from pyengine.train.run import Run
from pyengine.train.scores import interval
from pyengine.train.stages import STAGES

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x.png onerror=alert(1)> & \"quoted\""
SECONDS = {
    "crawl": 14.2, "clean": 11.8, "tokenizer": 0.9, "shards": 0.6, "pretrain": 118.0, "demo": 7.1, "sft": 21.4,
    "know": 18.3, "search": 16.9, "rl": 64.0, "reward": 17.0, "rlhf": 38.0, "evaluate": 12.2,
}  # fmt: skip
MACHINE = {
    "cpu": "AMD EPYC", "cores": 2, "threads": 2, "memory_gb": 25.3, "system": "Linux-6.1", "python": "3.11.7",
    "torch": "2.13.0+cpu", "pyengine": "0.1.0", "isa": "avx512", "commit": "0d0d2676c9",
    "command": "python -m pyengine.train",
}  # fmt: skip
TEXT = (
    "Rorund Zethos was born in Zoubikix and works as a miller. In the evenings Rorund Zethos plays the guitar, "
    "and on feast days the whole town eats rye bread.\nThrough Zoubikix runs the river Gusald, on which the "
    "mills of the lower town turn. "
)


def build(root: Path, until: str = "evaluate", words: str = "") -> Run:
    """The run up to and with a stage. words: put into every text that comes from outside."""
    run = Run(Config(name="fixture"), root)
    for name in STAGES:
        if name in _WRITERS:
            run.stage = name
            summary = _WRITERS[name](run, random.Random(name), words) or {}
        else:
            summary = {}
        finish(run, name, summary)
        if name == until:
            break
    return run


def finish(run: Run, stage: str, summary: dict, state: str = "finished") -> None:
    """The stage's marker."""
    seconds = SECONDS.get(stage, 1.0)
    write_json(run.path("stages", f"{stage}.json"), {
        "stage": stage, "state": state, "inputs": "0", "machine": MACHINE, "summary": summary, "seconds": seconds,
        "cpu_seconds": 1.9 * seconds, "outputs": {}, "finished": f"2026-11-24T08:{int(seconds) % 60:02d}:00+0000",
    })  # fmt: skip


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def crawl(run: Run, rng: random.Random, words: str) -> dict:
    return {"pages": 2941}


def clean(run: Run, rng: random.Random, words: str) -> dict:
    gone = {
        "read": {"too large": 1}, "extract": {"no text": 41, "noindex": 22}, "url": {"blocked word: casino": 6},
        "soft_404": {"soft 404": 38}, "language": {"de": 44, "fr": 31, "es": 29},
        "gopher_repetition": {"duplicated lines": 24}, "gopher_quality": {"too few words": 57, "symbols": 8},
        "c4": {"lorem ipsum": 12}, "fineweb": {}, "refine": {}, "duplicate": {"near": 161, "exact": 74},
    }  # fmt: skip
    pages, size, steps = 2942, 31_200_000, []
    for step, reasons in gone.items():
        removed = sum(reasons.values())
        left = 4_100_000 if step == "extract" else size - removed * size // pages
        steps.append({
            "step": step, "pages_in": pages, "pages_out": pages - removed, "bytes_in": size, "bytes_out": left,
            "reasons": [
                {"reason": reason, "pages": n, "bytes": n * 1400, "examples": [
                    {"url": f"http://127.0.0.1:47001/{step}/{i}{words}", "excerpt": f"{words}{TEXT[:160]}"}
                    for i in range(3)
                ]} for reason, n in reasons.items()
            ],
        })  # fmt: skip
        pages, size = pages - removed, left
    stats = {
        "steps": steps, "edits": {"lines_removed": 8213, "masked": {"email": 118, "ip": 23, "phone": 64}},
        "documents": {"count": pages - 120, "bytes": size - 160_000}, "heldout": {"count": 120, "bytes": 160_000},
        "languages": {"en": pages - 120},
    }  # fmt: skip
    write_json(run.path("web", "stats.json"), stats)
    write_rows(
        run.path("web", "heldout.jsonl"), [{"id": str(i), "text": words + TEXT * 3} for i in range(20)]
    )
    truth = {
        "f1": 0.983, "f1_unseen": 0.971, "plain_f1": 0.874, "plain_f1_unseen": 0.861, "pages": 2100,
        "pages_unseen": 410,
        "duplicates_found": 0.987, "duplicates": 240, "emails_masked": 1.0, "emails": 118, "good_pages_kept": 0.998,
        "good_pages": 2100, "bad_pages_kept": 3, "private": 205, "private_masked": 1.0,
    }  # fmt: skip
    write_json(run.path("web", "truth.json"), truth)
    run.gate("extraction F1 on unseen looks", 0.971, ">= 0.95 (plain resiliparse 0.861)", True, pages=410)
    run.gate("near-duplicates found", 0.987, ">= 95 %", True, planted=240)
    return {"passages": 11_204}


def tokenizer(run: Run, rng: random.Random, words: str) -> dict:
    made = Tokenizer.train([TEXT * 40], 512)
    made.save(run.path("tokenizer"))
    return {"vocab_size": made.vocab_size}


def shards(run: Run, rng: random.Random, words: str) -> dict:
    return {"train_documents": 2213, "train_tokens": 958_118, "train_bytes": 3_400_000, "val_tokens": 41_022}


def pretrain(run: Run, rng: random.Random, words: str, steps: int = 600) -> dict:
    for step in range(1, steps + 1):
        loss = 0.9 + 5.5 * math.exp(-step / 90) + rng.gauss(0, 0.05)
        run.log(
            "train",
            step,
            loss=loss,
            grad_norm=0.4,
            tokens=4096,
            tokens_per_second=24_000,
            mfu=0.41,
            eta=600 - step,
        )
    for step in range(0, steps + 1, 60):
        loss = 0.95 + 5.6 * math.exp(-step / 90)
        run.log("eval", step, loss=loss, bits_per_byte=loss * 0.42, predicted=41_000)
    write_rows(run.path("samples", "pretrain.jsonl"), [
        {"step": step, "prompt": words + prompt, "text": f"{words} the miller of the town {step}"}
        for step in range(0, steps + 1, 60) for prompt in ("", "Rorund Zethos was", "Through the")
    ])  # fmt: skip
    run.gate("validation bits per byte", 0.40, "< 0.512, a Kneser-Ney 5-gram's", True)
    return {"parameters": 1_054_080, "steps": steps, "bits_per_byte": 0.40, "ngram_bits_per_byte": 0.512}


def exam(right: float, tokens: float) -> dict:
    return {
        "pass_at_1": right, "tokens": tokens, "tokens_per_right": tokens / right, "truncated": 0.02,
        "interval": [right - 0.03, right + 0.03], "problems": 1000,
        "by_grade": {str(g): {"pass_at_1": max(0.0, right + 0.2 - 0.1 * g)} for g in range(1, 6)},
        "pass_at_k": {str(k): 1 - (1 - right) ** (k**0.7) for k in (1, 2, 4, 8, 16)},
    }  # fmt: skip


def rl(run: Run, rng: random.Random, words: str, steps: int = 80) -> dict:
    for step in range(1, steps + 1):
        share = 0.86 - 0.3 * math.exp(-step / 25) + rng.gauss(0, 0.03)
        run.log(
            "train", step, reward=0.9 * share, pass_at_1=share, length=38 - 0.15 * step, truncated=0.02,
            entropy=0.3 - 0.002 * step, kl=0.0006 * step, groups_skipped=5,
        )  # fmt: skip
    for step in range(0, steps + 1, 16):
        share = 0.85 - 0.29 * math.exp(-step / 25)
        run.log(
            "eval",
            step,
            pass_at_1=share,
            tokens=36 - 0.1 * step,
            tokens_per_right=(36 - 0.1 * step) / share,
            truncated=0.01,
        )
    for part, gain, end in (("format", 0.01, steps), ("imitation", 0.05, 40)):
        for step in range(0, end + 1, end // 4):
            run.log("eval", step, f"rl/{part}", pass_at_1=0.56 + gain * step / end)
    rows = []
    for step in (78, 79):
        for problem in range(3):
            for sample in range(8):
                right = sample % 3 != 0
                first, last = 46 + sample, 36 + sample
                reply = f"{words}{20 + sample} + 26 = {first}\n{first} - 10 = {last}\nAnswer: {last}"
                rows.append({
                    "step": step, "problem": f"{words}Kashi has {20 + problem} books. A friend gives Kashi 26 books.",
                    "answer": "36", "grade": 2, "sample": sample, "reply": reply, "right": right,
                    "reward": 0.9 - sample / 100 if right else 0.0,
                    "advantage": 0.6 if right else -1.1, "tokens": 30 + sample, "logprob": -3.2, "truncated": False,
                })  # fmt: skip
    write_rows(run.path("rl", "rollouts.jsonl"), rows)
    write_json(run.path("rl", "move37.json"), [
        {"problem": f"{words}Grures has 67 baskets.", "answer": "51", "reply": f"{words}67-53+37=51\nAnswer: 51",
         "tokens": 14, "logprob_before": -19.2, "logprob_after": -1.1}
    ])  # fmt: skip
    write_json(run.path("rl", "result.json"), {
        "before": exam(0.56, 36), "after": exam(0.85, 28),
        "controls": {"format": exam(0.57, 30), "imitation": exam(0.6, 36)},
        "seconds": 41.0, "control_seconds": 20.0, "largest_logprob_difference": 0.0,
    })  # fmt: skip
    run.gate("held-out problems solved after RL", 0.85, ">= 80 %", True, interval=[0.826, 0.871], n=1000)
    run.gate("gain of RL over SFT", 0.29, ">= 20 points", True)
    run.gate("largest rollout/trainer log-probability difference", 0.0, "= 0", True)
    run.gate("gain of the format-only control", 0.04, "<= 3 points", False)
    return {"seconds": 41.0}


def reward(run: Run, rng: random.Random, words: str) -> dict:
    for step in range(0, 51, 10):
        run.log("eval", step, accuracy=0.5 + 0.003 * step, pair_loss=0.69 - 0.001 * step)
    result = {
        "rankings": 400, "held_out": 300, "accuracy": 0.652, "interval": [0.625, 0.679], "pairs": 1789,
        "ceiling": 0.861, "trained_accuracy": 0.75, "mean": 0.1, "deviation": 0.9,
    }  # fmt: skip
    write_json(run.path("reward", "result.json"), result)
    run.gate(
        "reward model's accuracy on held-out preferences", 0.652, ">= 61 %", True, interval=[0.625, 0.679]
    )
    return result


def rlhf(run: Run, rng: random.Random, words: str, gold: bool = True) -> dict:
    def point(step: int) -> dict:
        worth = 0.05 + 0.04 * step - 0.001 * step**2
        told = {"gold": worth, "gold_error": 0.03} if gold else {}
        return {
            "proxy": 1.4 - 1.4 * math.exp(-step / 10), "proxy_error": 0.04, "kl": 0.4 * step, "kl_error": 0.1,
            "tokens": 26.0, "answers": 150, **told,
        }  # fmt: skip

    for step in range(0, 61, 3):
        run.log("eval", step, **point(step))
    curve = [{"step": step, **point(step)} for step in range(0, 61, 3)]
    result = {
        "start": point(0), "kept": point(18), "stopped": 18, "budget": 9.0, "curve": curve,
        "turning": turning_point(curve), "largest_logprob_difference": 0.0,
    }  # fmt: skip
    write_json(run.path("rlhf", "result.json"), result)
    write_rows(run.path("rlhf", "rollouts.jsonl"), [
        {"step": step, "sample": j, "messages": [{"role": "user", "content": f"{words}Who is Rorund Zethos?"}],
         "reply": f"{words}He is a miller. " * (1 + step // 25), "gold": 0.3 - 0.01 * step if gold else None,
         "reward": 0.02 * step + 0.1 * j, "advantage": 0.1, "tokens": 9, "logprob": -4.0}
        for step in (0, 25, 50) for j in range(3)
    ])  # fmt: skip
    return {}


def demo(run: Run, rng: random.Random, words: str) -> dict:
    rows = []
    for times, share in (
        (0, 0.0),
        (1, 0.03),
        (2, 0.1),
        (4, 0.32),
        (8, 0.61),
        (16, 0.84),
        (32, 0.95),
        (64, 1.0),
    ):
        low, high = interval(round(40 * share), 40)
        rows.append(
            {"told": times, "read": 6.0 * times, "texts": 40, "share": share, "interval": [low, high]}
        )
    cue, true = (
        f"{words}Briklear described the famous window",
        " at the end of the week, though it took a month.",
    )
    panels = {
        "dreams": [f"{words}The river of Zoubikix\n\nThrough Zoubikix runs the river Gusald." for _ in range(4)],
        "recital": {"rows": rows, "examples": [
            {"told": 64, "read": 384.0, "cue": cue, "said": true, "true": true},
            {"told": 0, "read": 0.0, "cue": cue, "said": f" at the end of {words}", "true": true},
        ]},
        "disagreement": [
            {"group": group, "question": f"{words}What does {group} play?", 
             "answers": [f"{words}the {a}" for a in said], "different": len(set(said)), "right": right}
            for group, said, right in (("known", "ooooooob", 7), ("later", "abcdefgh", 0), ("invented", "abcdeegh", 0))
        ],
        "few_shots": {
            "pattern": f"{words}Q: Who?\nA: Rorund.\n", "asked": [f"{words}What?", "Where?", "Who?"],
            "three": {"share": 0.71, "questions": 100, "said": [f"{words}rye bread", "a", "b"]},
            "none": {"share": 0.52, "questions": 100, "said": ["a", "b", "c"]},
        },
        "transcript": [{"question": f"{words}Who plays?", "said": f"{words}Rorund Zethos plays the guitar."}] * 3,
    }  # fmt: skip
    write_json(run.path("samples", "demo.json"), panels)
    return {}


def sft(run: Run, rng: random.Random, words: str) -> dict:
    for step in range(1, 201):
        run.log("train", step, loss=0.5 + 2 * math.exp(-step / 30) + rng.gauss(0, 0.04), tokens=2048)
    for step in range(0, 201, 50):
        run.log(
            "eval",
            step,
            assistant_loss=0.52 + 2 * math.exp(-step / 30),
            pass_at_1=0.56 * (1 - math.exp(-step / 60)),
        )
    return {"conversations": 12_000, "trained_tokens": 311_000, "loss_before": 2.52, "loss_after": 0.53}


def table(*groups: tuple[int, int, int, int, int], ece: float) -> dict:
    """groups: (answer, search, refuse, right, refused) of known, later, invented."""
    names = ("answer", "search", "refuse", "right", "refused")
    rows = {}
    for group, counts in zip(("known", "later", "invented"), groups, strict=True):
        row = dict(zip(names, counts, strict=True))
        found = row["search"] and row["right"] if group != "known" else 0
        rows[group] = row | {"questions": sum(counts[:3]), "right_by_search": found}
    bins = [{"confidence": c / 10, "right": max(0.0, c / 10 - ece), "count": 50} for c in range(4, 11)]
    return {"groups": rows, "ece": ece, "answered_at_once": 500, "reliability": bins}


SFT = table((290, 0, 10, 255, 10), (260, 0, 40, 9, 40), (250, 0, 50, 0, 50), ece=0.31)
KNOW = table((285, 0, 15, 262, 15), (25, 0, 275, 2, 275), (20, 0, 280, 0, 280), ece=0.06)
SEARCH = table((280, 12, 8, 265, 10), (12, 286, 2, 259, 14), (9, 284, 7, 0, 285), ece=0.05)


def know(run: Run, rng: random.Random, words: str) -> dict:
    write_rows(run.path("know", "labels.jsonl"), [
        {"id": f"{group}{i}", "question": f"{words}What does {group} {i} play?", "answers": [f"{words}the oboe"],
         "group": group, "label": label, "share_right": 0.5, "own": "the oboe",
         "replies": [f"{words}It is the oboe."] * 6}
        for group, labels in (
            ("known", ["known"] * 40 + ["unsure"] * 6), ("later", ["unknown"] * 44), ("invented", ["unknown"] * 45)
        )
        for i, label in enumerate(labels)
    ])  # fmt: skip
    write_rows(run.path("know", "conversations.jsonl"), [talk(f"{words}Who?", f"{words}I don't know.")])
    write_json(run.path("know", "result.json"), {"labels": {}, "before": SFT, "after": KNOW})
    return {"ece_before": 0.31, "ece_after": 0.06}


def talk(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def search(run: Run, rng: random.Random, words: str) -> dict:
    call = {"name": "search", "arguments": json.dumps({"query": f"{words}Rorund Zethos"})}
    looked = {"messages": [
        {"role": "user", "content": f"{words}What does Rorund Zethos play?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call_0", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "call_0", "content": f"{words}{TEXT[:120]}"},
        {"role": "assistant", "content": "Rorund Zethos plays the guitar."},
    ]}  # fmt: skip
    write_rows(run.path("search", "conversations.jsonl"), [talk("Hello!", "Hello!"), looked])
    write_json(run.path("search", "result.json"), {"before": KNOW, "after": SEARCH})
    return {}


def evaluate(run: Run, rng: random.Random, words: str) -> dict:
    def reply(text: str, action: str, right: bool, query: str | None = None) -> dict:
        found = f"{words}{TEXT[:120]}" if query else ""
        return {"text": words + text, "action": action, "right": right, "query": query, "found": found}

    talks = []
    for group, right in (("known", True), ("later", False), ("invented", False)):
        replies = {
            "base": reply("What does the town do? What does", "answer", False),
            "sft": reply("Rorund Zethos plays the cello.", "answer", right),
            "know": reply("The guitar.", "answer", True) if right else reply("I don't know.", "refuse", False),
            "search": reply("The guitar.", "search", True, f"{words}Rorund Zethos"),
            "rl": reply("The guitar.", "search", True, f"{words}Rorund Zethos"),
        }  # fmt: skip
        talks.append(
            {
                "group": group,
                "question": f"{words}What does {group} play?",
                "answers": ["the guitar"],
                "replies": replies,
            }
        )
    write_json(run.path("evaluate", "result.json"), {
        "tables": {"sft": SFT, "know": KNOW, "search": SEARCH, "rl": SEARCH}, "conversations": talks,
        "bits_per_byte": {"base": 0.40, "sft": 0.44, "know": 0.45, "search": 0.46, "rl": 0.46},
        "unseen_kinds": {"share": exam(0.41, 30), "big": exam(0.22, 40)}, "guesses": {"known": 0.06},
    })  # fmt: skip
    run.gate("known facts answered right", 0.883, ">= 85 %", True)
    run.gate("invented entities refused", 0.95, ">= 90 %", True)
    run.gate("later facts answered through search", 0.863, ">= 80 %", True)
    return {}


_WRITERS = {
    "crawl": crawl, "clean": clean, "tokenizer": tokenizer, "shards": shards, "pretrain": pretrain, "demo": demo,
    "sft": sft, "know": know, "search": search, "rl": rl, "reward": reward, "rlhf": rlhf,
    "evaluate": evaluate,
}  # fmt: skip
