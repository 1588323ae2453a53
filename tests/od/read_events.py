"""Reads event files as TensorBoard does: `read_events.py LOGDIR`, without TensorFlow.

It stays, as TensorBoard stays open, and for each line on stdin looks once more and answers with a
line of JSON: `{reader: {"scalars": {run: {tag: [[step, value]]}}, "images": {run: {tag: [[step,
width, height, sha256 of an image's pixels...]]}}}}`. The readers are TensorBoard's two:
`accumulator`, its EventAccumulator and DirectoryWatcher, and `server`, its data server.
"""

import hashlib
import io
import json
import sys
import time
import types

import tensorboard.compat

# What TensorBoard reads with where no TensorFlow is installed.
sys.modules["tensorboard.compat.notf"] = types.ModuleType("tensorboard.compat.notf")
tensorboard.compat.notf = sys.modules["tensorboard.compat.notf"]

from PIL import Image  # noqa: E402
from tensorboard.backend.event_processing import (  # noqa: E402
    data_provider,
    plugin_event_multiplexer,
)
from tensorboard.context import RequestContext  # noqa: E402
from tensorboard.data import server_ingester  # noqa: E402
from tensorboard.util import grpc_util  # noqa: E402

RELOAD_SECONDS = 1
CONTEXT = RequestContext()
ALL = {"scalars": 0, "images": 0, "tensors": 0}


def scalars(provider):
    listed = provider.list_scalars(CONTEXT, experiment_id="", plugin_name="scalars")
    read = provider.read_scalars(CONTEXT, experiment_id="", plugin_name="scalars", downsample=10**6)
    return {
        run: {tag: [[point.step, point.value] for point in read[run][tag]] for tag in tags}
        for run, tags in listed.items()
    }


def images(provider):
    listed = provider.list_blob_sequences(CONTEXT, experiment_id="", plugin_name="images")
    read = provider.read_blob_sequences(
        CONTEXT, experiment_id="", plugin_name="images", downsample=10**6
    )
    return {
        run: {tag: [describe(provider, point) for point in read[run][tag]] for tag in tags}
        for run, tags in listed.items()
    }


def describe(provider, point):
    blobs = [provider.read_blob(CONTEXT, blob_key=value.blob_key) for value in point.values]
    found = [point.step, *map(int, blobs[:2])]
    for png in blobs[2:]:
        image = Image.open(io.BytesIO(png))
        assert image.size == tuple(found[1:3])
        found.append(hashlib.sha256(image.convert("RGB").tobytes()).hexdigest())
    return found


def main():
    folder = sys.argv[1]
    multiplexer = plugin_event_multiplexer.EventMultiplexer(tensor_size_guidance=ALL)
    server = server_ingester.SubprocessServerDataIngester(
        server_ingester.get_server_binary(),
        folder,
        reload_interval=RELOAD_SECONDS,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
        samples_per_plugin=ALL,
    )
    server.start()
    providers = {
        "accumulator": data_provider.MultiplexerDataProvider(multiplexer, folder),
        "server": server.data_provider,
    }
    for _ in sys.stdin:
        # The server looks by itself: one look is on its way, and the next sees all there is.
        time.sleep(2.2 * RELOAD_SECONDS)
        multiplexer.AddRunsFromDirectory(folder)
        multiplexer.Reload()
        seen = {
            name: {"scalars": scalars(provider), "images": images(provider)}
            for name, provider in providers.items()
        }
        print(json.dumps(seen), flush=True)


main()
