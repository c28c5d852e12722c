"""In a real browser the page of the viewer reads what is served, and no other page does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import pytest
from serving_scene import Scene

from itkstream.io import open_image
from itkstream.serving.serve import serve

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium here; .ci/report installs one")

_PAGE = """<pre id="found"></pre><script>
const told = {{}};
const say = () => document.getElementById("found").textContent = JSON.stringify(told);
(async () => {{
  try {{
    const group = await (await fetch("{url}/zarr.json", {{cache: "no-store"}})).json();
    told.axes = group.attributes.ome.multiscales[0].axes.map((axis) => axis.name);
    const chunk = await (await fetch("{url}/0/c/0/1/2")).arrayBuffer();
    told.bytes = chunk.byteLength;
    told.sum = new Uint16Array(chunk).reduce((a, b) => a + b, 0);
  }} catch (error) {{
    told.error = error.name;
  }}
  say();
}})();
</script>"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """The server of a web page: another origin than that of the images."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def browse(site: ThreadingHTTPServer, folder: Path, url: str) -> dict[str, Any]:
    """Open a page that reads from `url`, and return what it found."""
    (folder / "page.html").write_text(_PAGE.format(url=url))
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    words += ["--virtual-time-budget=20000", "--dump-dom"]
    page = f"http://127.0.0.1:{site.server_port}/page.html"
    done = subprocess.run(
        [BROWSER, *words, page], capture_output=True, text=True, timeout=120, check=True
    )
    told = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told is not None
    found: dict[str, Any] = json.loads(unescape(told[1]))
    return found


def test_the_viewer_reads_chunks(site: ThreadingHTTPServer, scene: Scene, tmp_path: Path) -> None:
    moving, viewer = open_image(scene.moving, channel=1), f"http://127.0.0.1:{site.server_port}/v/"
    with serve(scene.transform, moving, scene.fixed, viewer=viewer) as server:
        found = browse(site, tmp_path, f"{server.address}/aligned.ome.zarr")
    part = open_image(scene.applied).data[:, 64:128, 128:192]
    assert found == {"axes": ["z", "y", "x"], "bytes": 64**3 * 2, "sum": int(part.sum())}


def test_neuroglancer_draws_what_is_served(scene: Scene, tmp_path: Path) -> None:
    """By its python package, which brings the viewer: a plane of the aligned image in green."""
    neuroglancer = pytest.importorskip("neuroglancer", reason=".ci/report installs it")
    neuroglancer.set_server_bind_address("127.0.0.1")
    viewer = neuroglancer.Viewer()
    moving, aligned = open_image(scene.moving, channel=1), open_image(scene.applied)
    with serve(scene.transform, moving, scene.fixed, viewer=str(viewer)) as server:
        state = neuroglancer.parse_url(server.link)
        # A pixel for each voxel along x; the same length along y.
        state.layout, state.cross_section_scale = "xy", 1.0
        state.show_axis_lines = state.show_scale_bar = False
        viewer.set_state(state)
        rows = aligned.shape[1] * aligned.spacing[1] / aligned.spacing[2]
        picture = photograph(viewer, (aligned.shape[2], int(rows)), tmp_path)
    plane = aligned.read()[aligned.shape[0] // 2]
    seen = plane[(np.arange(int(rows)) / rows * len(plane)).astype(int)]
    green = picture[20:-20, 20:-20, 1]
    # The frame of the panel takes a pixel or two.
    parts = [seen[20 + k : k - 20, 20 + k : k - 20] for k in range(3)]
    assert max(np.corrcoef(green.ravel(), part.ravel())[0, 1] for part in parts) > 0.99


def photograph(viewer: Any, size: tuple[int, ...], folder: Path) -> np.ndarray:
    """The pixels that a browser shows of a viewer when all is loaded."""
    with viewer.config_state.txn() as config:
        config.show_ui_controls = config.show_panel_borders = False
        config.viewer_size = list(size)
    taken: Queue[Any] = Queue()
    viewer.async_screenshot(taken.put)
    words = ["--headless", "--no-sandbox", f"--user-data-dir={folder}/profile"]
    words += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    browser = subprocess.Popen(
        [BROWSER, *words, str(viewer)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        pixels: np.ndarray = taken.get(timeout=90).screenshot.image_pixels
        return pixels
    finally:
        browser.terminate()
        browser.wait()


def test_another_page_reads_nothing(
    site: ThreadingHTTPServer, scene: Scene, tmp_path: Path
) -> None:
    moving = open_image(scene.moving, channel=1)
    with serve(scene.transform, moving, scene.fixed) as server:
        found = browse(site, tmp_path, f"{server.address}/aligned.ome.zarr")
    assert found == {"error": "TypeError"}
