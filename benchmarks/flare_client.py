"""What NVIDIA FLARE's sites run in the benchmark: the received weights plus one, by its client API.

Copied into the job and started by FLARE's own Python, where nothing of fedglioma is installed.
"""

import nvflare.client as flare  # type: ignore[import-not-found]  # it lives in an environment of its own

flare.init()
while flare.is_running():
    model = flare.receive()
    if model is None:
        break
    flare.send(
        flare.FLModel(
            params={name: value + 1 for name, value in model.params.items()},
            meta={"NUM_STEPS_CURRENT_ROUND": 1},
        )
    )
