"""All benchmarks, one after the other: `make bench`."""

from __future__ import annotations

import attach
import fingerprint
import many
import rows
import startup
import step
import transfer

if __name__ == "__main__":
    for benchmark in (attach, fingerprint, startup, transfer, step, many, rows):
        benchmark.main()
