"""A peer without libraries: prints noise where a library might, answers, and ends when it is told to fail."""

from __future__ import annotations

from typing import Any

from benchmarks.paired import Link, settings


def main() -> None:
    link = Link()
    print("noise on standard output")
    factor = settings()["factor"]

    def run(amount: int, seed: int) -> dict[str, Any]:
        print("more noise")
        return {"seconds": factor * amount, "tokens": amount, "seed": seed}

    def fail() -> dict[str, Any]:
        raise RuntimeError("asked to fail")

    link.serve({"run": run, "fail": fail})


if __name__ == "__main__":
    main()
