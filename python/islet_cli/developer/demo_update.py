"""Step 12 of the demo: a new realm image, and the data is still there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from islet_cli.developer import demo, pipeline, samples
from islet_cli.developer.demo_refusals import MARKER_FILE
from islet_cli.developer.story import Step, require
from islet_cli.fsutil import write_atomic

if TYPE_CHECKING:
    from islet_cli.developer.demo import Stage


def play(stage: Stage, step: Step) -> None:
    """Rebuild the image with other content, publish it as svn 2, update the realm, start it."""
    from islet_cli.launch.manifest import load_manifest
    from islet_cli.realm_image.build import build
    from islet_cli.warden.network import Publish

    assert stage.published is not None
    old_rim = stage.published.rim
    path = stage.workspace.manifest_path(demo.REALM)
    text = re.sub(r"(?m)^svn = 1$", "svn = 2", path.read_text(), count=1)
    write_atomic(path, text.replace('version = "1.0.0"', 'version = "2.0.0"', 1).encode(), mode=0o644)
    stage.manifest = load_manifest(path)
    require(stage.manifest.svn == 2, "the manifest was not raised to svn 2")
    build(stage.workspace, stage.manifest, extra_files={MARKER_FILE: b"genuine, version 2\n"})
    stage.published = pipeline.publish_realm(stage.workspace, stage.manifest, list(stage.images.values()))
    require(stage.published.rim != old_rim, "the new image has the old RIM")
    stage.story.fact(step, "RIM", stage.published.rim.hex())
    assert stage.published.metadata is not None
    publish = [Publish("127.0.0.1", stage.http_port, samples.HTTP_PORT)]
    with pipeline.warden_client(stage.workspace) as warden:
        warden.stop(stage.realm_uuid)
        warden.update_realm(
            stage.realm_uuid,
            launch=demo.launch_of(stage.manifest),
            metadata=Path(stage.published.metadata),
            publish=publish,
        )
        warden.start(stage.realm_uuid)
    demo.expect_line(stage, samples.COUNTER, "counter version 2: run 5")
