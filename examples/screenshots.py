"""Pictures of a hub's pages for the manual, from the made-up registry of `showroom.py`, in a headless Chromium.

python examples/screenshots.py [FOLDER]        by default docs/images; CHROMIUM names another browser
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Final

import uvicorn
from playwright.sync_api import sync_playwright
from showroom import fill

from deltahub.registry.registry import Registry
from deltahub.server.app import build_app
from deltahub.server.settings import Settings
from deltahub.stores.local import LocalStore

CHROMIUM: Final = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SHOTS: Final = (  # file, address, colours, width, height
    ("hub-front", "/", "light", 1180, 760),
    ("hub-delta", "/acme/sst2-bert", "light", 1180, 900),
    ("hub-layers", "/research/stories-smollm2/layers/v2", "dark", 1180, 620),
    ("hub-compare", "/-/compare?left=acme/sst2-bert@v1&right=acme/sst2-bert@v3", "light", 1180, 1100),
    ("hub-phone", "/?type=lora&tag=lang%3Den", "dark", 390, 780),
)


def serve(folder: Path) -> str:
    """Serve the showroom from a thread, and say where."""
    registry = Registry(LocalStore(folder), "team")
    fill(registry)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        build_app(registry, Settings(public_url="https://hub.acme.org")), log_level="warning", ws="none", lifespan="off"
    )
    run: Any = uvicorn.Server(config).run
    threading.Thread(target=run, kwargs={"sockets": [listener]}, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def main() -> None:
    """Take all pictures."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "images"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        os.environ["DELTAHUB_CACHE"] = f"{folder}/cache"
        url = serve(Path(folder) / "registry")
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for name, address, scheme, width, height in SHOTS:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(url + address)
            page.screenshot(path=target / f"{name}.png")
            print(f"{target / name}.png  {(target / f'{name}.png').stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main()
