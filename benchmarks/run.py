"""All benchmarks, one after the other: `make bench`."""

from __future__ import annotations

import attach
import bucket
import fingerprint
import many
import rows
import startup
import step
import transfer

if __name__ == "__main__":
    for benchmark in (attach, fingerprint, startup, transfer, bucket, step, many, rows):
        benchmark.main()
