"""Makes the finished run that the page opens with: runs a request on the embedded model and saves its trace.

    python scripts/example_run.py "a panda in a top hat on a blue background" --seed 4

All of its cross-attention is kept with it, in float16: about 7 MB.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from core import models  # noqa: E402
from core.attention import Record  # noqa: E402
from core.sampling import Request, denoise  # noqa: E402
from core.trace import Trace  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="a panda in a top hat on a blue background")
    parser.add_argument("--negative", default="")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--scheduler", default="DDIM")
    parser.add_argument("--model", default="emoji", help="a catalogue name or a folder; default %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "examples" / "first.safetensors")
    a = parser.parse_args()

    sd = models.load(a.model)
    request = Request(a.prompt, a.negative, a.seed, a.steps, a.guidance, a.scheduler)
    trace = Trace.start(sd, request)
    last = None
    for last in trace.follow(denoise(sd, request, Record())):
        print(f"step {last.i + 1} of {last.count}", end="\r", flush=True)
    assert last is not None
    trace.finish(sd, last.x_next)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    trace.save(a.out)
    print(f"{a.out}: {a.out.stat().st_size / 1e6:.1f} MB, made by {sd.source} {sd.revision}")


if __name__ == "__main__":
    main()
