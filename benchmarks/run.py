"""All benchmarks, one after the other: `make bench`."""

from __future__ import annotations

import attach
import fingerprint
import startup
import transfer

if __name__ == "__main__":
    for benchmark in (attach, fingerprint, startup, transfer):
        benchmark.main()
