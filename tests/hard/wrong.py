"""Every verb and every option of the command line, what is right for each, and what is wrong."""

import types
import typing
from pathlib import Path

import pytest
import typer

from vtviz import cli

LONG = "x" * 5000
NUMBERS = {
    int: ("", "x", "1.5", "nan", "1e3", "0x10", "-", "–1", "½"),
    float: ("", "x", "nan", "inf", "-inf", "1,5", "-", "–1"),
}
"""What is no number of a kind: words, blanks, other dashes and fractions, endless ones."""
LEAST = {
    "size": ("0", "-1", "1", "100000", "9" * 400),
    "n": ("0", "-1"),
    "draws": ("0", "-1", "9" * 18),
    "steps": ("0", "-1", "9" * 18),
    "seed": ("-1", "9" * 30),
    "photos": ("0", "-1", "9" * 18),
    "threshold": ("-1",),
    "opacity": ("-0.1", "1.1"),
    "table": ("0", "9", "-1"),
    "every": ("0", "-1", "9" * 400),
    "frames": ("0", "-1", "9" * 400),
    "layer": ("2", "-3", "9" * 18),
    "fps": ("0", "-1", "1000"),
    "cell": ("0", "-1", "9" * 9),
    "epochs": ("0", "-1"),
    "batch_size": ("0", "-1"),
    "lr": ("0", "-1"),
    "limit": ("0", "-1"),
    "val_limit": ("0", "-1"),
    "micro_batch": ("0", "-1", "7"),
    "devices": ("0", "-1", "999"),
    "nodes": ("0", "-1"),
    "workers": ("-1", "9" * 9),
    "freeze": ("-1", "6"),
    "layer_decay": ("0", "-1", "1.5"),
}
"""Numbers that are out of range, by the name of the option."""
PATHS = ("", "-", "nowhere", "{place}/nowhere", "/dev/null", "{place}/empty", "{place}/" + LONG, "{place}/caf\udce9")
"""What is neither a file nor a folder that has what is wanted."""
NAMES = ("", "-", LONG, "--help", "../tiny", "tіny", "tin\N{ZERO WIDTH SPACE}y", "\udce9")
"""No name of a model, a class, a method ...; the fourth has a Cyrillic letter."""
LISTS = ("", ",", "0,", "0,x", "0,,1", "0;1", "99", "0,0.5", "9" * 400)
MODELS = (
    *NAMES,
    "tinny",
    "/dev/null",
    "{place}/empty",
    "{place}/empty.safetensors",
    "{place}/photo.png",
    "hf://",
    "hf://a",
)
WORDS = {
    "images": (*PATHS, "{place}/notes.txt", "{place}/*.nothing", "http://127.0.0.1/a.png"),
    "image": (*PATHS, "{place}/photos", "{place}/notes.txt", "http://127.0.0.1/a.png"),
    "source": (*PATHS, "{place}/notes.txt", "rtsp://127.0.0.1/a"),
    "reference": (*PATHS, "{place}/notes.txt", "{place}/*.nothing"),
    "model": MODELS,
    "layers": LISTS,
    "tokens": LISTS,
    "crop": ("", "centre", "Center", LONG),
    "align": ("", "receptive-field", "resise", LONG),
    "cmap": ("", "virids", "JET", LONG),
    "scale": ("", "shard", "1,2,3", "5,1", "1,1", "nan,1", "0,inf", ",", LONG),
    "device": ("", "gpu", "cuda:99", "meta", "CPU ", LONG),
    "target": (*NAMES, "class", "-1", "5", "99", "9" * 400, "³"),
    "methods": (*NAMES, "gradcam", "occlusoin"),
    "split": (*NAMES, "vall", "../folders/val"),
    "at": ("", "1", "1,2,3", "x,y", "1.5,2", "-1,0", "999999,0", "9" * 400 + ",1"),
    "box": ("", "1,1", "0,0,x,9", "5,5,1,1", "0,0,0,0", "0,0,999999,1"),
    "epochs": ("", "1", "1,2,3", "a,b", "1,99"),
    "kind": ("", "gif", "webmm", "../webm", LONG),
    "recipe": (*NAMES, "smal"),
    "preset": (*NAMES, "paperr"),
    "option": (
        "",
        "=",
        "num_tokens",
        "num_token=8",
        "num_tokens=x",
        "num_tokens=0",
        "num_tokens=1e9",
        "num_tokens=999999999999",
        "=3",
        "heads=7",
    ),
    "set_": (
        "",
        "=",
        "mixup",
        "mixpu=0.2",
        "mixup=x",
        "mixup=-1",
        "mixup=NaN",
        "optimizer=adam",
        "precision=8",
        "lr={}",
    ),
    "sizes": ("", ",", "x", "0", "-1", "32-", "32@2,48", "9" * 20),
    "start": (*MODELS, "torchvision:", "torchvision:IMAGENET"),
    "weights": ("", "-", LONG, "IMAGENET", "{place}/photo.png", "{place}/empty.safetensors", "{place}/nowhere.pt"),
    "teacher": (*MODELS, "torchvision:", "torchvision:resnet1"),
    "groups": (*NAMES, "ccp15"),
    "pixels": ("", "hots", LONG),
    "engine": (*NAMES, "onnx", "torchh"),
    "dtype": (*NAMES, "bf17", "float16"),
    "form": (*NAMES, "onxn", "tflite"),
    "scales": ("", "x", "0", "-1", "nan", "inf", "1,,2", "9" * 400),
}
"""Wrong texts, by the name of the option."""
FREE = {"terms", "licence", "notes"}
"""Options that take any text."""
FILES = {
    "data": (*PATHS, "{place}/photo.png"),
    "masks": (*PATHS, "{place}/photo.png", "{place}/folders"),
    "mask": (*PATHS, "{place}/photos", "{place}/notes.txt"),
    "add": (*PATHS, "{place}/photo.png", "{place}/photos"),
    "classes": (*PATHS, "{place}/photo.png"),
    "run": (*PATHS, "{place}/photo.png"),
    "also": (*PATHS, "{place}/photo.png"),
    "out": (
        "",
        "/dev/null",
        "/dev/full",
        "/proc/out",
        "{place}/photo.png",
        "{place}/photo.png/deep",
        "{place}/" + LONG,
    ),
}
"""Wrong paths, by the name of the option."""

SHORT = {"--model": "vt_resnet18", "--epochs": "1", "--limit": "4", "--sizes": "32", "--batch-size": "4"}
GOOD: dict[str, tuple[tuple[str, ...], dict[str, str | None]]] = {
    "extract": (("{place}/photo.png",), {"--out": "{out}", "--no-pictures": None}),
    "segment": (("{place}/photo.png",), {"--out": "{out}", "--model": "segmenter"}),
    "ablate": (("{place}/photo.png",), {"--out": "{out}", "--draws": "1"}),
    "attribute": (("{place}/photo.png",), {"--out": "{out}", "--method": "gradient_x_token"}),
    "faithfulness": ((), {"--out": "{out}", "--data": "{place}/folders", "--n": "1", "--method": "gradient_x_token"}),
    "lineage": (("{place}/photo.png",), {"--out": "{out}"}),
    "query": (("{place}/photo.png",), {"--out": "{out}", "--at": "1,1"}),
    "report": (("{place}/photo.png",), {"--out": "{out}"}),
    "dissect": ((), {"--out": "{out}", "--data": "{place}/folders"}),
    "compare": (("{place}/photo.png", "{place}/photos/1.png"), {"--out": "{out}"}),
    "video": (("{place}/photos",), {"--out": "{out}", "--cell": "64"}),
    "evaluate": ((), {"--data": "{place}/folders"}),
    "publish": ((), {"--run": "{tiny}", "--out": "{out}/good.safetensors", "--data": "{place}/folders", "--sizes": ""}),
    "train": ((), {"--out": "{out}", "--data": "{place}/folders", "--recipe": "small"} | SHORT),
    "finetune": ((), {"--out": "{out}", "--data": "{place}/folders", "--from": "tiny"} | SHORT),
    "export": ((), {"--out": "{out}/good.pt2"}),
    "models": ((), {}),
    "profile": ((), {"--table": "1"}),
}
"""A call of each verb that is right: arguments and options."""
ONE_LOOK = {("query", "at"), ("query", "box"), ("video", "tokens")}
"""What can be told only when the model has looked at the one image, or at the first frame."""
USUAL = {"--model": "tiny", "--size": "64", "--device": "cpu"}


def declared() -> dict[tuple[str, str], tuple[str, type]]:
    """(verb, name of the parameter) -> its option ("" for an argument) and type, of the whole program."""
    found = {}
    commands = typer.main.get_command(cli.app).commands
    for command in cli.app.registered_commands:
        verb = command.name or command.callback.__name__
        options = {p.name: max(p.opts, key=len) for p in commands[verb].params if p.param_type_name == "option"}
        for name, hint in typing.get_type_hints(command.callback).items():
            if name not in {"context", "return"}:
                inner = [a for a in typing.get_args(hint) if a is not types.NoneType] or [hint]
                kind = (typing.get_args(inner[0]) or inner)[0]
                found[verb, name] = options.get(name, ""), kind
    return found


DECLARED = declared()


def wrong_values(verb: str, name: str, kind: type) -> tuple[str, ...]:
    if kind in NUMBERS:
        return NUMBERS[kind] + LEAST.get(name, ())
    if (verb, name) == ("publish", "sizes"):
        return "x", "0", "-1", "9" * 20, "96;128"  # none at all is right here
    return (FILES if kind is Path else WORDS).get(name, ())


def tried() -> list:
    """Half of what is wrong for an option of the first verb that has it; all else, and training's, in the slow set."""
    found, seen = [], set()
    for (verb, name), (option, kind) in DECLARED.items():
        if kind is not bool and name not in FREE:
            heavy = verb in {"train", "finetune", "publish"}  # they build whole models
            values, label = wrong_values(verb, name, kind), f"{verb} {option or name}"
            if not heavy and (name, kind) not in seen:
                seen.add((name, kind))
                found.append(pytest.param(verb, option, values[::2], id=label))
                values, label = values[1::2], f"{label}, the rest"
            found.append(pytest.param(verb, option, values, id=label, marks=pytest.mark.slow))
    return found


def call(verb, arguments, options, run, **paths):
    """Exit code, stdout, stderr."""
    allowed = {option for (of, _), (option, _) in DECLARED.items() if of == verb}
    parts = [verb, *arguments]
    for option, value in ({k: v for k, v in USUAL.items() if k in allowed} | options).items():
        parts += [option] if value is None else [f"{option}={value}"]
    return run(*(filled(part, paths) for part in parts))


def filled(text: str, paths: dict[str, Path]) -> str:
    for name, path in paths.items():
        text = text.replace(f"{{{name}}}", str(path))
    return text


def tree(*folders: Path) -> dict[str, int]:
    """Files and folders; of files, when they changed."""
    found = (p for folder in folders for p in folder.rglob("*"))
    return {str(p): 0 if p.is_dir() else p.stat().st_mtime_ns for p in found}
