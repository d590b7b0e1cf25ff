"""Settings of every test run."""

from __future__ import annotations

import hypothesis
import torch

torch.set_num_threads(1)

# A draw may wait for the machine; how long tests take is for other tests to say.
hypothesis.settings.register_profile("any_machine", deadline=None)
hypothesis.settings.load_profile("any_machine")
