"""The embedded models' tokenizer: OpenAI CLIP's own byte-pair encoding, 49,408 entries, written as transformers' CLIPTokenizer.

    python scripts/make_tokenizer.py [--wheel open_clip_torch-3.3.0-py3-none-any.whl] [--out assets/models/emoji/tokenizer]

The merges ship in the wheel of open_clip_torch 3.3.0 (MIT); without --wheel, pip fetches it. The ids are those of every
Stable Diffusion 1.x, so a prompt is cut into the same tokens here as there.
"""

import argparse
import gzip
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from transformers import CLIPTokenizer

WHEEL = "open_clip_torch==3.3.0"
MERGES = "open_clip/bpe_simple_vocab_16e6.txt.gz"
OUT = Path(__file__).resolve().parent.parent / "assets" / "models" / "emoji" / "tokenizer"
SIZE = 49408  # 256 bytes, the same at a word's end, 48,894 merges, and the two marks of start and end
START, END = "<|startoftext|>", "<|endoftext|>"


def read_merges(wheel: Path) -> list[tuple[str, str]]:
    """The merges that CLIP was trained with: the file is longer than its vocabulary, and its first line is a version."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(MERGES)).decode().split("\n")[1 : SIZE - 512 - 2 + 1]
    return [(first, second) for first, second in (line.split() for line in lines)]


def byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in CLIP's order: the printable bytes as themselves, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(others)]


def make(wheel: Path) -> CLIPTokenizer:
    merges, letters = read_merges(wheel), byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    assert len(words) == len(vocabulary) == SIZE, f"{len(words)} entries, {len(vocabulary)} of them different; expected {SIZE}"
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, bos_token=START, eos_token=END, unk_token=END, pad_token=END, model_max_length=77
    )


def check(tokenizer: CLIPTokenizer) -> None:
    """What everything above relies on: the known ids, lower case, padding to 77, and the place of each token in the text."""
    puppy = tokenizer("A picture of a puppy", return_offsets_mapping=True)
    assert puppy.input_ids == [49406, 320, 1674, 539, 320, 6829, 49407], puppy.input_ids
    assert puppy.offset_mapping == [(0, 0), (0, 1), (2, 9), (10, 12), (13, 14), (15, 20), (0, 0)], puppy.offset_mapping
    padded = tokenizer("a red apple", padding="max_length", truncation=True).input_ids
    assert len(padded) == 77 and padded[5:] == [49407] * 72, padded
    assert len(tokenizer("apple " * 100, truncation=True).input_ids) == 77
    assert len(tokenizer) == SIZE and tokenizer.model_max_length == 77


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--wheel", type=Path, help=f"the wheel of {WHEEL}; fetched with pip if not given")
    arguments.add_argument("--out", type=Path, default=OUT)
    options = arguments.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        wheel = options.wheel
        if wheel is None:
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, WHEEL], check=True)
            (wheel,) = Path(folder).glob("*.whl")
        tokenizer = make(wheel)

    check(tokenizer)
    tokenizer.save_pretrained(options.out)
    check(CLIPTokenizer.from_pretrained(options.out))
    for file in sorted(options.out.iterdir()):
        print(f"{file.stat().st_size / 1e6:8.3f} MB  {file.name}")


if __name__ == "__main__":
    main()
